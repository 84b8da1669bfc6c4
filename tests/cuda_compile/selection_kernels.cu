// Every kernel of the selection operators, in every type libsfa_cuda.so has it for.
#include "cuda/scores.cuh"
#include "cuda/selection_kernels.cuh"
#include "cuda/sparse_adamw.cuh"
#include "cuda/values.cuh"

namespace sfa::cuda {

using Scores = Table<ScoreEntry>;
using Steps = Table<AdamWEntry>;
using Selects = Table<SelectEntry>;
using Bounds = const int64_t*;
using State = const SelectState*;

template __global__ void accumulate_kernel<float, float>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<float, Half>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<float, BFloat16>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<double, float>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<double, Half>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<double, BFloat16>(const __grid_constant__ Scores, Criterion);
template __global__ void accumulate_kernel<double, double>(const __grid_constant__ Scores, Criterion);

template __global__ void adamw_kernel<float, float, float>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                           AdamWSettings);
template __global__ void adamw_kernel<double, double, double>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                              AdamWSettings);
template __global__ void adamw_kernel<Half, Half, float>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                         AdamWSettings);
template __global__ void adamw_kernel<Half, float, float>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                          AdamWSettings);
template __global__ void adamw_kernel<BFloat16, BFloat16, float>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                                 AdamWSettings);
template __global__ void adamw_kernel<BFloat16, float, float>(const __grid_constant__ Steps, const Rates*, int64_t,
                                                              AdamWSettings);

template __global__ void histogram_kernel<uint16_t>(const __grid_constant__ Selects, Bounds, int64_t, int, int,
                                                    uint16_t, SelectState*, unsigned long long*);
template __global__ void tally_kernel<uint16_t>(const __grid_constant__ Selects, Bounds, State, Tally*);
template __global__ void write_kernel<uint16_t>(const __grid_constant__ Selects, Bounds, State, const Place*);
template __global__ void histogram_kernel<uint32_t>(const __grid_constant__ Selects, Bounds, int64_t, int, int,
                                                    uint32_t, SelectState*, unsigned long long*);
template __global__ void tally_kernel<uint32_t>(const __grid_constant__ Selects, Bounds, State, Tally*);
template __global__ void write_kernel<uint32_t>(const __grid_constant__ Selects, Bounds, State, const Place*);
template __global__ void histogram_kernel<uint64_t>(const __grid_constant__ Selects, Bounds, int64_t, int, int,
                                                    uint64_t, SelectState*, unsigned long long*);
template __global__ void tally_kernel<uint64_t>(const __grid_constant__ Selects, Bounds, State, Tally*);
template __global__ void write_kernel<uint64_t>(const __grid_constant__ Selects, Bounds, State, const Place*);

template __global__ void swap_kernel<uint8_t>(uint8_t*, int64_t, const int64_t*, uint8_t*, int64_t);
template __global__ void swap_kernel<uint16_t>(uint16_t*, int64_t, const int64_t*, uint16_t*, int64_t);
template __global__ void swap_kernel<uint32_t>(uint32_t*, int64_t, const int64_t*, uint32_t*, int64_t);
template __global__ void swap_kernel<uint64_t>(uint64_t*, int64_t, const int64_t*, uint64_t*, int64_t);
template __global__ void swap_kernel<Bits128>(Bits128*, int64_t, const int64_t*, Bits128*, int64_t);

}  // namespace sfa::cuda
