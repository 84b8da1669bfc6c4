// sfa::select_topk: the k largest |scores| over a list of tensors together, without copying or moving a score.
//
// Histograms of the digits of keys, from the top, narrow the k-th largest key down to its exact value; another pass
// counts per chunk what lies above and at it, and the last one writes positions. Counts are whole numbers and positions
// are written in the order of the chunks: the result does not depend on the order in which blocks run.
//
// Floor, in bytes of device memory: each pass reads every score once, and 8 for each excluded position. float32 has
// three passes of digits, so 5 x 4 bytes a score, and 8 k for the result; fewer where the first digits settle it.
#pragma once

#include <utility>
#include <vector>

#include "selection_kernels.cuh"

namespace sfa::cuda {

// U: unsigned integer of the scores' size; infinity: its bits.
template <class U>
class TopK {
 public:
  // The tensors, in order; their `out`, `out_start` and `first_bound` are set here.
  TopK(std::vector<SelectEntry> tensors, U infinity) : tensors_(std::move(tensors)), infinity_(infinity) {
    for (SelectEntry& t : tensors_) {
      first_chunks_.push_back(chunks_);
      t.first_bound = chunks_ + static_cast<int64_t>(first_chunks_.size()) - 1;  // one more than chunks, each
      chunks_ += chunks_of(t);
    }
    first_chunks_.push_back(chunks_);
  }

  // Device memory that rank() and write() need.
  int64_t workspace_bytes() const {
    return report_bytes() + kBins * sizeof(int64_t) + bounds() * sizeof(int64_t) + chunks_ * sizeof(Tally);
  }

  // The head of the workspace, which the host has to read between rank() and write().
  int64_t report_bytes() const { return sizeof(SelectState) + (chunks_ + 1) * sizeof(Place); }

  // Settles what is taken. There must be at least k eligible scores.
  void rank(int64_t k, void* workspace, cudaStream_t stream) {
    lay_out(static_cast<char*>(workspace));
    const int64_t words = kBins + bounds();
    launch(kName, &start_kernel, blocks_for(words, 64 * kSelectThreads), dim3(kSelectThreads), 0, stream, state_, k,
           static_cast<int64_t>(tensors_.size()), bins_, words);
    for_each_table(
        tensors_, kSelectThreads, [](const SelectEntry& t) { return t.n_excluded; },
        [&](const Table<SelectEntry>& table, int64_t) {
          launch(kName, &bounds_kernel, grid_of(table), dim3(kSelectThreads), 0, stream, table, bounds_, state_);
        });
    for (int high = 8 * sizeof(U) - 1; high > 0; high -= kDigit) {
      const int low = high > kDigit ? high - kDigit : 0;
      for_each_chunk_table([&](const Table<SelectEntry>& table, int64_t first_tensor) {
        launch(kName, &histogram_kernel<U>, grid_of(table), dim3(kSelectThreads),
               (kCopies * kBins + kMarkWords) * sizeof(uint32_t), stream, table, bounds_, first_tensor, low, high,
               high == 8 * sizeof(U) - 1 ? infinity_ : U{0}, state_, bins_);
      });
      launch(kName, &digit_kernel, dim3(1), dim3(kScanThreads), 32 * sizeof(int64_t), stream, low, state_, bins_);
    }
    for_each_chunk_table([&](const Table<SelectEntry>& table, int64_t first_tensor) {
      launch(kName, &tally_kernel<U>, grid_of(table), dim3(kSelectThreads), (32 + kMarkWords) * sizeof(uint32_t),
             stream, table, bounds_, state_, tallies_ + first_chunks_[first_tensor]);
    });
    launch(kName, &place_kernel, dim3(1), dim3(kScanThreads), 64 * sizeof(int64_t), stream, k, chunks_, tallies_,
           places_);
  }

  // How many positions each tensor's result holds; `report` is a copy of the report on the host.
  std::vector<int64_t> lengths(const void* report) {
    const Place* places = reinterpret_cast<const Place*>(static_cast<const SelectState*>(report) + 1);
    std::vector<int64_t> result;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      tensors_[i].out_start = places[first_chunks_[i]].offset;
      result.push_back(places[first_chunks_[i + 1]].offset - tensors_[i].out_start);
    }
    return result;
  }

  // Writes the positions; out[i] has room for lengths()[i].
  void write(const std::vector<int64_t*>& out, cudaStream_t stream) {
    for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].out = out[i];
    for_each_chunk_table([&](const Table<SelectEntry>& table, int64_t first_tensor) {
      launch(kName, &write_kernel<U>, grid_of(table), dim3(kSelectThreads), (64 + kMarkWords) * sizeof(uint32_t),
             stream, table, bounds_, state_, places_ + first_chunks_[first_tensor]);
    });
  }

 private:
  static constexpr const char* kName = "select_topk";

  static int64_t chunks_of(const SelectEntry& t) { return (t.size + kChunk - 1) / kChunk; }
  static dim3 grid_of(const Table<SelectEntry>& table) { return dim3(table.first[table.size]); }
  static dim3 blocks_for(int64_t n, int64_t per_block) {
    return dim3(static_cast<unsigned>((n + per_block - 1) / per_block));
  }

  int64_t bounds() const { return chunks_ + static_cast<int64_t>(tensors_.size()); }

  template <class Run>
  void for_each_chunk_table(Run&& run) const {
    for_each_table(tensors_, kChunk, [](const SelectEntry& t) { return t.size; }, run);
  }

  void lay_out(char* workspace) {
    state_ = reinterpret_cast<SelectState*>(workspace);
    places_ = reinterpret_cast<Place*>(state_ + 1);
    bins_ = reinterpret_cast<unsigned long long*>(places_ + chunks_ + 1);
    bounds_ = reinterpret_cast<int64_t*>(bins_ + kBins);
    tallies_ = reinterpret_cast<Tally*>(bounds_ + bounds());
  }

  std::vector<SelectEntry> tensors_;
  const U infinity_;
  std::vector<int64_t> first_chunks_;  // of each tensor; at last the number of chunks
  int64_t chunks_ = 0;
  SelectState* state_ = nullptr;  // and the rest of the workspace
  Place* places_ = nullptr;
  unsigned long long* bins_ = nullptr;
  int64_t* bounds_ = nullptr;
  Tally* tallies_ = nullptr;
};

}  // namespace sfa::cuda
