// One tile of rows of the adapter, from x in device memory to x + relu(x w_down^T + b_down) w_up^T + b_up.
//
// A block owns block_rows rows, two warps for each 32 of them. First it goes along the width of x, panel by panel, and
// adds up the hidden numbers in registers; these go to shared memory, never to device memory. Then it goes along the
// width of the result, each panel the product of the hidden numbers with a part of w_up, added to the panel of x in
// place, from where it leaves in whole sectors. What both walks need, panels of x and of the weights, is one sequence
// of stages, copied ahead into a ring of slots. Panels of x stay in shared memory where all of a tile fit
// (x_resident), else the second walk fetches them again, from L2. Weights that fit as well (weights_resident) are
// fetched once for all tiles of a block.
//
// The gradient's pass is the same with grad_out for x, w_up^T for w_down and w_down^T for w_up; the relu becomes a
// mask, from hidden numbers that were kept or, in one walk more, computed again.
#pragma once

#include "panel.cuh"

namespace sfa::cuda {

constexpr int kMaxThreads = 256;  // two for each of the at most 128 rows of a block

// Blocks of kMaxThreads that the registers of a multiprocessor shall suffice for. Chunks of 128 hidden numbers leave
// shared memory for one alone, but on sm_90 and sm_100; it may then have twice as many.
template <int kChunk>
constexpr int kBlocks = kChunk == 64 || (kArch >= 900 && kArch < 1200) ? 2 : 1;

template <class T>
struct AdapterArgs {
  int64_t rows;
  int width, hidden;    // D, d
  const T* x;           // [rows, D]
  const T* w_down;      // [d, D]
  const T* b_down;      // [d] or null
  const T* w_up;        // [D, d]
  const T* b_up;        // [D] or null
  T* out;               // [rows, D]
  T* hidden_out;        // [rows, d] or null
  int64_t hidden_step;  // numbers from one row of hidden_out to the next
  bool hidden_only;     // no result is wanted

  // The gradient's pass: what masks the hidden numbers.
  bool masked;
  const T* mask;         // [rows, d], hidden numbers of the forward; null: computed from the next three
  const T* mask_x;       // [rows, D]
  const T* mask_w_down;  // [d, D]
  const T* mask_b_down;  // [d] or null
  T* mask_out;           // [rows, d] or null: where they are kept
  int64_t mask_step;
};

// Where things stand in shared memory, in bytes; panels of x are first. Made by plan_adapter (adapter_plan.h).
struct AdapterLayout {
  int tiles;
  int block_rows;
  int panels;  // of x, along D
  int slices;  // panels of the hidden numbers, along d
  int chunks;  // of the hidden numbers
  int walks;   // along D for a chunk: 2 where one computes the mask
  int stages;  // slots of the ring, 2 or 3
  bool x_resident, weights_resident;
  int hidden_at, weights_at, ring_at;
  int stage_bytes, stage_weights_at;
  int shared_bytes;
};

// kChunk hidden numbers are in registers at a time: 64 or 128. kMayMask: whether there is a gradient's pass.
template <class Math, int kChunk, bool kMayMask>
class AdapterTile {
 public:
  using T = typename Math::Number;
  static constexpr int kColumns = kPanelColumns<T>;
  static constexpr int kDownTiles = kChunk / 16, kUpTiles = kColumns / 16;

  __device__ AdapterTile(const AdapterArgs<T>& args, const AdapterLayout& layout) : args_(args), layout_(layout) {}

  __device__ void fetch_weights() {
    if (!layout_.weights_resident) return;
    for (int chunk = 0; chunk < layout_.chunks; ++chunk)
      for (int panel = 0; panel < layout_.panels; ++panel)
        fetch_panel(down_panel(chunk, panel), args_.w_down, chunk * kChunk, args_.hidden, args_.width, panel, kChunk);
    for (int panel = 0; panel < layout_.panels; ++panel)
      for (int slice = 0; slice < layout_.slices; ++slice)
        fetch_panel(up_panel(panel, slice), args_.w_up, panel * kColumns, args_.width, args_.hidden, slice, kColumns);
  }

  // Tile number `tile`; store(panel) sends a finished panel of the result away, warp by warp.
  template <class Store>
  __device__ void run(int tile, Store&& store) {
    tile_ = tile;
    stage_ = 0;
    for (int stage = 0; stage < layout_.stages - 1; ++stage) fetch_stage(stage);
    for (int chunk = 0; chunk < layout_.chunks; ++chunk) compute_hidden(chunk);
    if (!args_.hidden_only) {
      if (layout_.weights_resident) __syncthreads();  // the hidden numbers are written
      for (int panel = 0; panel < layout_.panels; ++panel) {
        char* of_x = compute_panel(panel);
        store(panel, of_x);
      }
    }
    cp_async_wait<0>();
  }

  // Copies this warp's part of a finished panel to `out`.
  __device__ void store_panel(int panel, char* from, T* out) {
    constexpr int kPerUnit = kUnitBytes / sizeof(T), kHalf = kUnits / 2;
    const int top = warp_row(), left = warp_column() * kHalf;
    __syncwarp();  // neighbouring numbers come from other lanes
    for (int i = threadIdx.x % 32; i < 32 * kHalf; i += 32) {
      const int r = top + i / kHalf, unit = left + i % kHalf;
      const int column = panel * kColumns + unit * kPerUnit;
      if (first_row() + r < args_.rows && column < args_.width)
        *reinterpret_cast<uint4*>(out + (first_row() + r) * args_.width + column) =
            *reinterpret_cast<const uint4*>(unit_at(from, r, unit));
    }
  }

  __device__ int number() const { return tile_; }
  __device__ int64_t first_row() const { return static_cast<int64_t>(tile_) * layout_.block_rows; }  // its first
  __device__ char* x_panel(int panel) { return dynamic_shared() + panel * (layout_.block_rows * kPanelBytes); }

 private:
  __device__ static int warp_row() { return fresh_thread() / 64 * 32; }
  __device__ static int warp_column() { return fresh_thread() / 32 % 2; }
  __device__ char* hidden_panel(int slice) {
    return dynamic_shared() + layout_.hidden_at + slice * (layout_.block_rows * kPanelBytes);
  }
  __device__ char* slot(int stage) {
    return dynamic_shared() + layout_.ring_at + (layout_.stages == 3 ? stage % 3 : stage % 2) * layout_.stage_bytes;
  }
  __device__ char* down_panel(int chunk, int panel) {
    return dynamic_shared() + layout_.weights_at + (chunk * layout_.panels + panel) * (kChunk * kPanelBytes);
  }
  __device__ char* up_panel(int panel, int slice) {
    return down_panel(layout_.chunks, 0) + (panel * layout_.slices + slice) * (kColumns * kPanelBytes);
  }
  __device__ int walks() const { return kMayMask ? layout_.walks : 1; }
  __device__ int down_stages() const { return layout_.chunks * walks() * layout_.panels; }

  // Starts the copies of a stage, if there is one left: a panel of rows, a panel of weights, or one of them.
  __device__ void fetch_stage(int stage) {
    const int left = stage - down_stages();
    char* to = slot(stage);
    const T *rows = args_.x, *weights = args_.w_down;
    char* rows_to = layout_.x_resident ? nullptr : to;
    bool any = !layout_.weights_resident;
    int rows_panel, first, limit = args_.hidden, width = args_.width, panel, count = kChunk;
    if (left < 0) {
      const int walk = stage / layout_.panels, chunk = walk / walks();
      rows_panel = panel = stage % layout_.panels;
      first = chunk * kChunk;
      if (walks() == 2 && walk % 2 == 0) {
        rows = args_.mask_x;
        weights = args_.mask_w_down;
        rows_to = to;
      } else if (chunk == 0 && layout_.x_resident) {
        rows_to = x_panel(panel);
      }
    } else {
      rows_panel = left / layout_.slices;
      panel = left % layout_.slices;
      first = rows_panel * kColumns;
      limit = args_.width;
      width = args_.hidden;
      count = kColumns;
      weights = args_.w_up;
      if (panel < layout_.slices - 1) rows_to = nullptr;
      any = any && !args_.hidden_only && rows_panel < layout_.panels;
      if (!any) rows_to = nullptr;
    }
    if (rows_to != nullptr)
      fetch_panel(rows_to, rows, first_row(), args_.rows, args_.width, rows_panel, layout_.block_rows);
    if (any) fetch_panel(to + layout_.stage_weights_at, weights, first, limit, width, panel, count);
    cp_async_commit();
  }

  // Makes the next stage ready to be read, and its predecessor's slot the target of new copies.
  __device__ int next_stage() {
    if (layout_.stages == 3)
      cp_async_wait<1>();
    else
      cp_async_wait<0>();
    __syncthreads();  // copies of all threads are there, and all have read what the next copies overwrite
    fetch_stage(stage_ + layout_.stages - 1);
    return stage_++;
  }

  __device__ void compute_hidden(int chunk) {
    uint32_t alive[2] = {0, 0};
    if (kMayMask && args_.mask != nullptr) load_mask(chunk, alive);
    for (int walk = 0; walk < walks(); ++walk) {
      const bool for_mask = walks() == 2 && walk == 0;
      Accumulators<kDownTiles> sum;
      clear<kDownTiles>(sum);
      for (int panel = 0; panel < layout_.panels; ++panel) {
        char* at = slot(next_stage());
        const char* left = layout_.x_resident && !for_mask ? x_panel(panel) : at;
        const char* right = layout_.weights_resident ? down_panel(chunk, panel) : at + layout_.stage_weights_at;
        multiply<Math, kDownTiles>(sum, left, warp_row(), right, warp_column() * (kChunk / 2));
      }
      if (for_mask)
        make_mask(sum, chunk, alive);
      else
        finish_hidden(sum, chunk, alive);
    }
  }

  // f(row in the tile, number in the row of hidden numbers, whether both exist, m, n, 2h) for every pair of them
  template <class F>
  __device__ void for_hidden(int chunk, F&& f) {
    const int lane = fresh_lane(), top = warp_row(), left = chunk * kChunk + warp_column() * (kChunk / 2);
    for_pairs<kDownTiles>([&](int m, int n, int h) {
      const int row = top + row_of<Math>(lane, m, h), column = left + column_of<Math>(lane, n);
      f(row, column, first_row() + row < args_.rows && column < args_.hidden, m, n, 2 * h);
    });
  }

  // Bias and relu, or the mask; then to shared memory, and to device memory where it is wanted.
  __device__ void finish_hidden(const Accumulators<kDownTiles>& sum, int chunk, const uint32_t (&alive)[2]) {
    for_hidden(chunk, [&](int row, int column, bool inside, int m, int n, int i) {
      float first = sum[m][n][i], second = sum[m][n][i + 1];
      if (kMayMask && args_.masked) {
        first = is_alive(alive[m], n, i) ? first : 0;
        second = is_alive(alive[m], n, i + 1) ? second : 0;
      } else {
        const float2 bias = bias_at(args_.b_down, column, args_.hidden);
        first = relu(first + bias.x);
        second = relu(second + bias.y);
      }
      if (column >= args_.hidden) first = second = 0;  // infinity times a weight that is not there made them NaN
      store_pair<T>(pair_at<T>(hidden_panel(column / kColumns), row, column % kColumns), first, second);
      if (inside && args_.hidden_out != nullptr)
        store_pair<T>(args_.hidden_out + (first_row() + row) * args_.hidden_step + column, first, second);
    });
  }

  // One bit for each of a lane's numbers: whether the forward's hidden number lives. Computed, or loaded.
  __device__ void make_mask(const Accumulators<kDownTiles>& sum, int chunk, uint32_t (&alive)[2]) {
    for_hidden(chunk, [&](int row, int column, bool inside, int m, int n, int i) {
      const float2 bias = bias_at(args_.mask_b_down, column, args_.hidden);
      // Rounded first, as the forward's are: what became zero is dead.
      const float first = to_float(from_float<T>(relu(sum[m][n][i] + bias.x)));
      const float second = to_float(from_float<T>(relu(sum[m][n][i + 1] + bias.y)));
      alive[m] |= alive_bit(first, n, i) | alive_bit(second, n, i + 1);
      if (inside && args_.mask_out != nullptr)
        store_pair<T>(args_.mask_out + (first_row() + row) * args_.mask_step + column, first, second);
    });
  }
  __device__ void load_mask(int chunk, uint32_t (&alive)[2]) {
    for_hidden(chunk, [&](int row, int column, bool inside, int m, int n, int i) {
      if (!inside) return;
      const float2 hidden = load_pair<T>(args_.mask + (first_row() + row) * args_.hidden + column);
      alive[m] |= alive_bit(hidden.x, n, i) | alive_bit(hidden.y, n, i + 1);
    });
  }
  __device__ static uint32_t alive_bit(float hidden, int n, int i) { return (hidden <= 0 ? 0u : 1u) << (4 * n + i); }
  __device__ static bool is_alive(uint32_t alive, int n, int i) { return (alive >> (4 * n + i) & 1) != 0; }

  // The result's panel, in the place of that of x.
  __device__ char* compute_panel(int panel) {
    Accumulators<kUpTiles> sum;
    clear<kUpTiles>(sum);
    char* of_x = x_panel(panel);
    for (int slice = 0; slice < layout_.slices; ++slice) {
      const char* right = up_panel(panel, slice);
      if (!layout_.weights_resident) {
        char* at = slot(next_stage());
        right = at + layout_.stage_weights_at;
        if (!layout_.x_resident) of_x = at;
      }
      multiply<Math, kUpTiles>(sum, hidden_panel(slice), warp_row(), right, warp_column() * (kColumns / 2));
    }
    const int lane = fresh_lane(), top = warp_row(), left = warp_column() * (kColumns / 2);
    for_pairs<kUpTiles>([&](int m, int n, int h) {
      const int column = left + column_of<Math>(lane, n);
      char* at = pair_at<T>(of_x, top + row_of<Math>(lane, m, h), column);
      const float2 x = load_pair<T>(at), bias = bias_at(args_.b_up, panel * kColumns + column, args_.width);
      store_pair<T>(at, x.x + (sum[m][n][2 * h] + bias.x), x.y + (sum[m][n][2 * h + 1] + bias.y));
    });
    return of_x;
  }

  __device__ static float2 bias_at(const T* bias, int at, int size) {
    return bias != nullptr && at < size ? load_pair<T>(bias + at) : make_float2(0, 0);
  }
  __device__ static float relu(float v) { return v < 0 ? 0 : v; }  // NaN stays

  const AdapterArgs<T>& args_;
  const AdapterLayout& layout_;
  int tile_ = 0;
  int stage_ = 0;
};

}  // namespace sfa::cuda
