// sfa::select_topk for tensors of torch. It waits for the device once: the lengths of the result have to be known.
#include "common/check.h"
#include "common/tensor_lists.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "selection.cuh"

namespace sfa::cuda {
namespace {

using torch::headeronly::ScalarType;

template <class U>
std::vector<Tensor> select(const std::vector<Tensor>& scores, const std::vector<Tensor>& excluded, int64_t k,
                           U infinity, cudaStream_t stream) {
  std::vector<SelectEntry> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    tensors.push_back({scores[i].const_data_ptr(), static_cast<const int64_t*>(excluded[i].const_data_ptr()),
                       scores[i].numel(), excluded[i].numel(), nullptr, 0, 0});
  }
  TopK<U> top(tensors, infinity);
  const Tensor workspace = torch::stable::new_empty(scores[0], {top.workspace_bytes()}, ScalarType::Byte);
  top.rank(k, workspace.mutable_data_ptr(), stream);
  std::vector<char> report(top.report_bytes());
  check(cudaMemcpyAsync(report.data(), workspace.const_data_ptr(), report.size(), cudaMemcpyDeviceToHost, stream),
        "select_topk");
  check(cudaStreamSynchronize(stream), "select_topk");
  const SelectState& state = *reinterpret_cast<const SelectState*>(report.data());
  STD_TORCH_CHECK(state.unsorted == 0, "excluded must be strictly increasing positions");
  STD_TORCH_CHECK(state.nan == static_cast<int64_t>(scores.size()), "scores[", state.nan,
                  "] holds NaN, which has no rank");
  std::vector<Tensor> results;
  std::vector<int64_t*> data;
  for (int64_t length : top.lengths(report.data())) {
    results.push_back(torch::stable::new_empty(scores[0], {length}, ScalarType::Long));
    data.push_back(static_cast<int64_t*>(results.back().mutable_data_ptr()));
  }
  top.write(data, stream);
  return results;
}

}  // namespace

std::vector<Tensor> select_topk(
    const std::vector<Tensor>& scores,    // any shapes, one floating dtype; copied if they are not contiguous
    const std::vector<Tensor>& excluded,  // int64 [n_i], strictly increasing positions
    int64_t k) {
  if (scores.empty()) return {};
  const ScalarType dtype = scores[0].scalar_type();
  STD_TORCH_CHECK(scores.size() == excluded.size(), "excluded must be as many as scores");
  int64_t eligible = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    STD_TORCH_CHECK(scores[i].scalar_type() == dtype, "scores must be of one dtype");
    check_form(excluded[i], "excluded", {excluded[i].numel()}, ScalarType::Long);
    eligible += scores[i].numel() - excluded[i].numel();
  }
  STD_TORCH_CHECK(k >= 0 && k <= eligible, "k must be within [0, ", eligible, "], got ", k);
  const OnDevice device(scores[0], scores), excluded_device(scores[0], excluded);
  const std::vector<Tensor> values = contiguous(scores), left_out = contiguous(excluded);
  switch (dtype) {
    case ScalarType::Float:
      return select<uint32_t>(values, left_out, k, 0x7f800000u, device.stream());
    case ScalarType::Double:
      return select<uint64_t>(values, left_out, k, 0x7ff0000000000000u, device.stream());
    case ScalarType::BFloat16:
      return select<uint16_t>(values, left_out, k, 0x7f80, device.stream());
    case ScalarType::Half:
      return select<uint16_t>(values, left_out, k, 0x7c00, device.stream());
    default:
      STD_TORCH_CHECK(false, "scores must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace sfa::cuda
