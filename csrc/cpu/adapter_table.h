// Defines kAdapter for the instruction set SFA_ISA_NAMESPACE; included by adapter_<isa>.cpp alone.
#pragma once

#include "adapter_kernels.h"
#include "adapter_outer.h"
#include "adapter_rows.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class T>
constexpr AdapterKernels make_kernels() {
  using Word = typename Product<T>::Word;
  return {
      .number_bytes = sizeof(T),
      .acc_bytes = sizeof(typename Product<T>::Acc),
      .tile_rows = kTileRows<T>,
      .panel = kPanel<T>,
      .outer_rows = kOuterRows<T>,
      .outer_columns = kOuterColumns,
      .packed_bytes = [](int64_t n, int64_t k) -> int64_t { return padded<T>(n) * words<T>(k) * sizeof(Word); },
      .pack_transposed =
          [](const void* w, int64_t n, int64_t k, int64_t first, int64_t last, void* out) {
            pack_transposed<T>(static_cast<const T*>(w), n, k, k, first, last, static_cast<Word*>(out));
          },
      .pack_plain =
          [](const void* w, int64_t n, int64_t k, int64_t first, int64_t last, void* out) {
            pack_plain<T>(static_cast<const T*>(w), k, n, first, last, static_cast<Word*>(out));
          },
      .takes_few = [](int64_t width, int64_t hidden) { return takes_few<T>(width) && takes_few<T>(hidden); },
      .row_scratch = Block<T>::scratch_bytes,
      .forward = forward<T>,
      .forward_norm = forward_norm<T, T>,
      .forward_norm_float = forward_norm<T, typename Product<T>::Acc>,
      .backward = backward<T>,
      .backward_norm = backward_norm<T, T>,
      .backward_norm_float = backward_norm<T, typename Product<T>::Acc>,
      .outer_scratch = outer_scratch<T>,
      .outer = outer<T>,
      .column_sums = column_sums<T>,
      .finish = finish<T>,
  };
}

}  // namespace

const AdapterKernels kAdapter[4] = {make_kernels<float>(), make_kernels<double>(), make_kernels<Bf16>(),
                                    make_kernels<Fp16>()};

}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
