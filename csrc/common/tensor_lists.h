// What an operator over lists of tensors asks before it writes through them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sfa {

// Whether an element of a tensor in `written` is also an element of another tensor in `written` or `read`.
// All must be contiguous.
inline bool overlap(const std::vector<torch::stable::Tensor>& written, const std::vector<torch::stable::Tensor>& read) {
  struct Span {
    const char* begin;
    const char* end;
    bool written;
  };
  std::vector<Span> spans;
  const auto add = [&](const torch::stable::Tensor& t, bool is_written) {
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size());
    if (bytes > 0) spans.push_back({begin, begin + bytes, is_written});
  };
  for (const auto& t : written) add(t, true);
  for (const auto& t : read) add(t, false);
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const char* written_end = nullptr;
  const char* any_end = nullptr;
  for (const Span& s : spans) {
    if (s.begin < (s.written ? any_end : written_end)) return true;
    any_end = std::max(any_end, s.end);
    if (s.written) written_end = std::max(written_end, s.end);
  }
  return false;
}

// The tensors themselves where they are contiguous, contiguous copies elsewhere.
inline std::vector<torch::stable::Tensor> contiguous(const std::vector<torch::stable::Tensor>& tensors) {
  std::vector<torch::stable::Tensor> result;
  for (const auto& t : tensors) result.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
  return result;
}

}  // namespace sfa
