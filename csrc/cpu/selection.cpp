// sfa::select_topk: the k largest |scores| over a list of tensors together, without copying or moving a score.
//
// The bits of a score without its sign, read as an integer, order like its magnitude. Histograms of the digits of these
// keys, from the top, narrow the k-th largest down to its exact value; another pass counts per chunk what lies above
// and at it, and the last one writes positions. Each pass reads the scores once: the time hardly depends on how they
// are distributed. Counts are whole numbers, so the result is the same for any number of threads.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "chunks.h"
#include "common/check.h"
#include "kernels.h"
#include "memory.h"
#include "selection_kernels.h"
#include "strided_reader.h"

namespace sfa::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kChunk = 1 << 15;
constexpr int64_t kFlush = 1 << 16;  // chunks whose scores a 32-bit counter can count

std::vector<int64_t> lengths_of(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> lengths;
  for (const Tensor& t : tensors) lengths.push_back(t.numel());
  return lengths;
}

// A run of scores and the positions among them that are excluded; positions count from the start of the tensor.
template <typename U>
struct Run {
  const U* scores;
  Chunk chunk;
  const int64_t* excluded_begin;
  const int64_t* excluded_end;

  int64_t size() const { return chunk.end - chunk.begin; }

  U key(int64_t position) const { return key_of(scores[position - chunk.begin]); }
};

// How the eligible scores of a chunk stand to the threshold; then, how many of its ties are taken and where its
// positions start in the tensor's result.
struct Tally {
  int64_t above = 0;
  int64_t equal = 0;
  int64_t ties = 0;
  int64_t offset = 0;
};

// U: unsigned integer of the scores' size; infinity: its bits.
template <typename U>
class TopK {
 public:
  TopK(const std::vector<Tensor>& scores, const std::vector<Tensor>& excluded, U infinity)
      : infinity_(infinity), chunks_(lengths_of(scores), kChunk), tallies_(chunks_.size()), lengths_(scores.size()) {
    for (size_t i = 0; i < scores.size(); ++i) {
      readers_.emplace_back(scores[i]);
      const int64_t* positions = static_cast<const int64_t*>(excluded[i].const_data_ptr());
      excluded_.emplace_back(positions, positions + excluded[i].numel());
    }
  }

  // Settles what is taken: everything above the threshold, and of what equals it the first in order. There must be at
  // least k eligible scores. Raises if one is NaN.
  void rank(int64_t k) {
    find_threshold(k);
    count_chunks();
    for (const Tally& t : tallies_) k -= t.above;
    for (int64_t i = 0; i < chunks_.size(); ++i) {
      Tally& t = tallies_[i];
      int64_t& length = lengths_[chunks_[i].list];
      t.ties = std::min(t.equal, k);
      t.offset = length;
      length += t.above + t.ties;
      k -= t.ties;
    }
  }

  // How many positions each tensor's result holds.
  const std::vector<int64_t>& lengths() const { return lengths_; }

  void write(const std::vector<int64_t*>& results) const {
    share_chunks(chunks_.size(), [&](const auto& next) {
      std::vector<U> buffer;
      std::vector<int64_t> positions(kChunk + 1);
      std::vector<uint8_t> marks(kChunk);
      for (int64_t i = next(); i >= 0; i = next()) {
        const Tally& t = tallies_[i];
        if (t.above + t.ties == 0) continue;
        const Run<U> run = load(i, buffer);
        int64_t n = collect(run.scores, run.size(), threshold_, run.chunk.begin, positions.data());
        if (n > t.above + t.ties) n = remove_untaken(run, t.ties, positions.data(), n, marks.data());
        std::copy_n(positions.data(), n, results[run.chunk.list] + t.offset);
      }
    });
  }

 private:
  void find_threshold(int64_t k) {
    int64_t wanted = k;  // rank of the k-th largest key among those that share its digits so far
    U width = static_cast<U>(1) << (8 * sizeof(U) - 1);
    while (width > 1) {
      const U digit_width = std::max<U>(width >> kDigit, 1);
      const std::vector<int64_t> bins = count_digits(width, std::countr_zero(digit_width));
      int64_t digit = kBins - 1;
      while (bins[digit] < wanted) wanted -= bins[digit--];
      threshold_ += static_cast<U>(digit * digit_width);
      if (bins[digit] == wanted) return;  // all with these digits are taken
      width = digit_width;
    }
  }

  // Counts the eligible keys in [threshold_, threshold_ + width) by their digit from bit `shift` on.
  std::vector<int64_t> count_digits(U width, int shift) const {
    const bool first = width >> (8 * sizeof(U) - 1) != 0;
    const int64_t none = static_cast<int64_t>(readers_.size());
    std::atomic<int64_t> nan{none};
    std::vector<int64_t> total(kBins);
    std::mutex total_lock;
    share_chunks(chunks_.size(), [&](const auto& next) {
      std::vector<U> buffer;
      std::vector<uint32_t> bins(kCopies * kBins);
      const auto flush = [&] {
        const std::lock_guard<std::mutex> lock(total_lock);
        for (int64_t b = 0; b < kBins; ++b) {
          uint32_t sum = 0;  // copies may have wrapped below zero, their sum has not
          for (int64_t copy = 0; copy < kCopies; ++copy) sum += std::exchange(bins[copy * kBins + b], 0);
          total[b] += sum;
        }
      };
      int64_t counted = 0;
      for (int64_t i = next(); i >= 0; i = next()) {
        const Run<U> run = load(i, buffer);
        if (!first) {
          histogram_within(run.scores, run.size(), threshold_, width, shift, bins.data());
        } else if (histogram(run.scores, run.size(), shift, bins.data()) > infinity_) {
          lower(nan, run.chunk.list);
        }
        for (const int64_t* p = run.excluded_begin; p != run.excluded_end; ++p) {
          const U rest = run.key(*p) - threshold_;
          bins[(rest >> shift) % kBins] -= rest < width;
        }
        if (++counted % kFlush == 0) flush();
      }
      flush();
    });
    STD_TORCH_CHECK(nan == none, "scores[", nan.load(), "] holds NaN, which has no rank");
    return total;
  }

  void count_chunks() {
    share_chunks(chunks_.size(), [&](const auto& next) {
      std::vector<U> buffer;
      for (int64_t i = next(); i >= 0; i = next()) {
        const Run<U> run = load(i, buffer);
        Tally& t = tallies_[i];
        count(run.scores, run.size(), threshold_, &t.above, &t.equal);
        for (const int64_t* p = run.excluded_begin; p != run.excluded_end; ++p) {
          t.above -= run.key(*p) > threshold_;
          t.equal -= run.key(*p) == threshold_;
        }
      }
    });
  }

  // Of n positions at or above the threshold keeps those that are not excluded, and only the first ties. No branch
  // depends on a position: it could not be predicted. `marks` has a zero for each score of a chunk.
  int64_t remove_untaken(const Run<U>& run, int64_t ties, int64_t* positions, int64_t n, uint8_t* marks) const {
    for (const int64_t* p = run.excluded_begin; p != run.excluded_end; ++p) marks[*p - run.chunk.begin] = 1;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t position = positions[i];
      const bool eligible = marks[position - run.chunk.begin] == 0;
      const bool tie = run.key(position) == threshold_;
      const bool taken = eligible & (!tie | (ties > 0));
      ties -= taken & tie;
      positions[kept] = position;
      kept += taken;
    }
    for (const int64_t* p = run.excluded_begin; p != run.excluded_end; ++p) marks[*p - run.chunk.begin] = 0;
    return kept;
  }

  Run<U> load(int64_t i, std::vector<U>& buffer) const {
    const Chunk c = chunks_[i];
    const auto& [begin, end] = excluded_[c.list];
    const int64_t* excluded_begin = std::lower_bound(begin, end, c.begin);
    return {readers_[c.list].read(c.begin, c.end - c.begin, buffer), c, excluded_begin,
            std::lower_bound(excluded_begin, end, c.end)};
  }

  const U infinity_;
  std::vector<StridedReader<U>> readers_;
  std::vector<std::pair<const int64_t*, const int64_t*>> excluded_;
  Chunks chunks_;
  U threshold_ = 0;  // the k-th largest key, as far as its digits are known
  std::vector<Tally> tallies_;
  std::vector<int64_t> lengths_;
};

template <typename U>
std::vector<Tensor> select(const std::vector<Tensor>& scores, const std::vector<Tensor>& excluded, int64_t k,
                           U infinity) {
  TopK<U> top(scores, excluded, infinity);
  top.rank(k);
  std::vector<Tensor> results;
  std::vector<int64_t*> data;
  for (size_t i = 0; i < scores.size(); ++i) {
    results.push_back(torch::stable::new_empty(scores[i], {top.lengths()[i]}, ScalarType::Long));
    data.push_back(static_cast<int64_t*>(results.back().mutable_data_ptr()));
  }
  top.write(data);
  return results;
}

}  // namespace

std::vector<Tensor> select_topk(const std::vector<Tensor>& scores,    // any shapes and strides, one floating dtype
                                const std::vector<Tensor>& excluded,  // int64 [n_i], strictly increasing positions
                                int64_t k) {
  if (scores.empty()) return {};
  const ScalarType dtype = scores[0].scalar_type();
  STD_TORCH_CHECK(scores.size() == excluded.size(), "excluded must be as many as scores");
  int64_t eligible = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    STD_TORCH_CHECK(scores[i].is_cpu() && scores[i].scalar_type() == dtype, "scores must be of one dtype, on the CPU");
    check_tensor(excluded[i], "excluded", {excluded[i].numel()}, ScalarType::Long);
    eligible += scores[i].numel() - excluded[i].numel();
  }
  STD_TORCH_CHECK(k >= 0 && k <= eligible, "k must be within [0, ", eligible, "], got ", k);
  const std::vector<Tensor> left_out = contiguous(excluded);
  STD_TORCH_CHECK(first_unsorted(left_out, lengths_of(scores)) < 0, "excluded must be strictly increasing positions");

  switch (dtype) {
    case ScalarType::Float:
      return select<uint32_t>(scores, left_out, k, 0x7f800000u);
    case ScalarType::Double:
      return select<uint64_t>(scores, left_out, k, 0x7ff0000000000000u);
    case ScalarType::BFloat16:
      return select<uint16_t>(scores, left_out, k, 0x7f80);
    case ScalarType::Half:
      return select<uint16_t>(scores, left_out, k, 0x7c00);
    default:
      STD_TORCH_CHECK(false, "scores must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace sfa::cpu
