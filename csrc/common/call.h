// Calling an operator of torch by its name.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

namespace sfa {

// The arguments are in `stack`; the results take their place. Raises what the operator raises, with its text where
// this torch hands it over.
inline void call_operator(const char* name, const char* overload, StableIValue* stack) {
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)  // not in the headers of every torch
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
#else
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
#endif
}

}  // namespace sfa
