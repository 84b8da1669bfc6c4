// How a device runs the adapter kernels: rows of a block, what stays in shared memory, how many blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "adapter_tile.cuh"

namespace sfa::cuda {

struct Device {
  int arch;              // 800 for compute capability 8.0
  int processors;        // streaming multiprocessors
  int shared_per_block;  // bytes, the most that a block may ask for
  int shared_per_processor;
};

struct AdapterPlan {
  AdapterLayout layout;
  int chunk;   // hidden numbers in registers at a time
  int blocks;  // to start
};

// What of a tile stays where; sizes in bytes.
template <class T>
AdapterLayout lay_out(int64_t rows, int width, int hidden, int chunk, int block_rows, bool x_resident,
                      bool weights_resident, bool second_x, int stages) {
  constexpr int kColumns = kPanelColumns<T>;
  const int padded = (hidden + chunk - 1) / chunk * chunk;
  AdapterLayout out{};
  out.tiles = static_cast<int>((rows + block_rows - 1) / block_rows);
  out.block_rows = block_rows;
  out.panels = (width + kColumns - 1) / kColumns;
  out.slices = padded / kColumns;
  out.chunks = padded / chunk;
  out.walks = second_x ? 2 : 1;
  out.stages = stages;
  out.x_resident = x_resident;
  out.weights_resident = weights_resident;
  const int rows_panel = block_rows * kPanelBytes;
  out.hidden_at = x_resident ? out.panels * rows_panel : 0;
  out.weights_at = out.hidden_at + out.slices * rows_panel;
  out.ring_at = out.weights_at + (weights_resident ? 2 * out.panels * padded * kPanelBytes : 0);
  out.stage_weights_at = x_resident && !second_x ? 0 : rows_panel;
  out.stage_bytes = out.stage_weights_at + (weights_resident ? 0 : std::max(chunk, kColumns) * kPanelBytes);
  out.shared_bytes = out.ring_at + stages * out.stage_bytes;
  return out;
}

// The plan for `rows` rows of [D] = width through d = hidden; none where the kernels do not serve these sizes.
// keep_x: all panels of x must stay, for a norm. second_x: a walk along a second matrix, for a mask.
//
// As many rows as possible share the weights that a block fetches, as long as every processor has a block. Then two
// blocks fit into a processor, where that is possible; then x stays, and the weights too, where there is room; then the
// ring has three slots. Before sm_80, where copies wait, it has two.
template <class T>
std::optional<AdapterPlan> plan_adapter(const Device& device, int64_t rows, int64_t width, int64_t hidden, bool keep_x,
                                        bool second_x) {
  constexpr int kPerUnit = kUnitBytes / sizeof(T);
  if (rows < 1 || rows > int64_t{1} << 35 || width < 1 || width > 1 << 16 || hidden < 1 || hidden > 256)
    return std::nullopt;
  if (width % kPerUnit != 0 || hidden % kPerUnit != 0) return std::nullopt;
  const int chunk = hidden <= 64 ? 64 : 128;
  int most_rows = 128;
  while (most_rows > 32 && (rows + most_rows - 1) / most_rows < device.processors) most_rows /= 2;
  constexpr int kReserved = 1024;  // bytes that the system takes from each block
  const int for_two = std::min(device.shared_per_processor / 2 - kReserved, device.shared_per_block);
  const struct {
    bool x, weights;
    int stages;
  } candidates[] = {{true, true, 3},  {true, true, 2},   {true, false, 3},
                    {true, false, 2}, {false, false, 3}, {false, false, 2}};
  for (int block_rows = most_rows; block_rows >= 32; block_rows /= 2)
    for (const int limit : {for_two, device.shared_per_block})
      for (const auto [x, weights, stages] : candidates) {
        if ((keep_x && !x) || (weights && second_x) || (device.arch < 800 && stages > 2)) continue;
        const AdapterLayout layout = lay_out<T>(rows, width, hidden, chunk, block_rows, x, weights, second_x, stages);
        if (layout.shared_bytes > limit) continue;
        const int at_once =
            device.processors * std::max(1, device.shared_per_processor / (layout.shared_bytes + kReserved));
        return AdapterPlan{layout, chunk, weights ? std::min(layout.tiles, at_once) : layout.tiles};
      }
  return std::nullopt;
}

}  // namespace sfa::cuda
