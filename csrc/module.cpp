// `sfa_ext._C`: how this copy was built, and nothing else. pybind11 ties a binary to one Python, which is why the ops
// live in libraries of their own.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

py::tuple split(const std::string& list) {
  py::list items;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.append(item);
  return py::tuple(items);
}

py::dict build_facts() {
  py::dict facts;
  facts["version"] = SFA_VERSION;
  facts["torch_headers"] = SFA_TORCH_VERSION;
  facts["oldest_torch"] = "2.10";
  facts["compiler"] = SFA_COMPILER;
  facts["architecture"] = SFA_ARCHITECTURE;
  facts["cpu_isas"] = split(SFA_CPU_ISAS);
  facts["cuda_archs"] = split(SFA_CUDA_ARCHS);
  facts["cuda_compiler"] = SFA_CUDA_COMPILER;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "How this copy of sfa_ext was built.";
  module.def("build_facts", &build_facts,
             "Versions, compilers, and the CPU instruction sets and CUDA architectures this copy was compiled for.");
}
