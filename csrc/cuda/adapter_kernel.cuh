// fused_adapter, fused_adapter_keep and the grad_x of fused_adapter_backward.
//
// Floor of the forward, in bytes of device memory: x read once and the result written once, 2 N D elements (4 N D
// bytes in half types), and 4 N D d operations; the larger time rules. Weights come from L2 once for each block_rows
// rows, which is d / block_rows of that traffic, unless they are resident. Keeping the hidden numbers adds N d.
// Floor of the gradient's pass: grad_out and x read, grad_x written, 3 N D, and N d for each of the two hidden
// matrices that the weight gradients need; 6 N D d operations.
#pragma once

#include "adapter_tile.cuh"

namespace sfa::cuda {

template <class Math, int kChunk>
__global__ void __launch_bounds__(kMaxThreads, kBlocks<kChunk>)
    adapter_kernel(const __grid_constant__ AdapterArgs<typename Math::Number> args,
                   const __grid_constant__ AdapterLayout layout) {
  if constexpr (kArch >= Math::kOldest) {
    AdapterTile<Math, kChunk, true> tile(args, layout);
    tile.fetch_weights();
    for (int number = blockIdx.x; number < layout.tiles; number += gridDim.x) {
      tile.run(number, [&](int panel, char* from) { tile.store_panel(panel, from, args.out); });
      __syncthreads();  // all have sent their part of the panels away that the next tile overwrites
    }
  }
}

}  // namespace sfa::cuda
