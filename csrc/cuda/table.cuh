// Work on many lists in one launch: a table says what each list is and which blocks work on it.
//
// The table is an argument of the kernel, handed over by value: nothing is copied that the stream has to wait for, and
// a CUDA graph keeps it. More lists than a table holds take another launch.
#pragma once

#include "builtins.cuh"

#if !defined(__CUDACC_RTC__)
#include <memory>
#include <vector>
#endif

namespace sfa::cuda {

constexpr int64_t kTableBytes = 16000;  // of the 32764 that CUDA has allowed for arguments since 12.1

template <class Entry>
struct Table {
  static constexpr int kCapacity = kTableBytes / (sizeof(Entry) + sizeof(int32_t));

  Entry entries[kCapacity];
  int32_t first[kCapacity + 1];  // number of the first block of each list; at last the number of blocks
  int32_t size = 0;

  // The list that a block works on.
  __device__ __forceinline__ int list_of(int32_t block) const {
    int low = 0, high = size;  // first[low] <= block < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first[middle] <= block)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

#if !defined(__CUDACC_RTC__)
// Calls run(table, number of its first list) until every entry was in a table; tables without a block are left out.
// length(entry): how many elements the list has; per_block: how many of them a block works on.
template <class Entry, class Length, class Run>
void for_each_table(const std::vector<Entry>& entries, int64_t per_block, Length&& length, Run&& run) {
  const auto table = std::make_unique<Table<Entry>>();
  const auto flush = [&](size_t end) {
    if (table->first[table->size] > 0) run(*table, static_cast<int64_t>(end) - table->size);
    table->size = 0;
  };
  table->first[0] = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const int64_t blocks = (length(entries[i]) + per_block - 1) / per_block;
    if (table->size == Table<Entry>::kCapacity || table->first[table->size] + blocks > INT32_MAX) flush(i);
    table->entries[table->size] = entries[i];
    table->first[table->size + 1] = static_cast<int32_t>(table->first[table->size] + blocks);
    ++table->size;
  }
  flush(entries.size());
}
#endif

}  // namespace sfa::cuda
