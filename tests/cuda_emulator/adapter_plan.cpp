// Plans for every GPU and size: there is one, it fits, and its parts of shared memory do not overlap.
#include "cuda/adapter_plan.h"

#include "check.h"

using namespace sfa::cuda;

namespace {

const Device kDevices[] = {
    {700, 80, 96 << 10, 96 << 10},     {750, 40, 64 << 10, 64 << 10},    {800, 108, 163 << 10, 164 << 10},
    {860, 84, 99 << 10, 100 << 10},    {890, 128, 99 << 10, 100 << 10},  {900, 132, 227 << 10, 228 << 10},
    {1000, 148, 227 << 10, 228 << 10}, {1200, 170, 99 << 10, 100 << 10},
};

// Where kernels for chunks of 128 may take more registers than two blocks have (kBlocks), shared memory holds one
// alone.
void check_occupancy(const AdapterPlan& plan, const Device& device, const std::string& name) {
  if (plan.chunk == 64 || (device.arch >= 900 && device.arch < 1200) || 2 * plan.layout.block_rows < kMaxThreads)
    return;
  check::expect(2 * plan.layout.shared_bytes > device.shared_per_processor, name + ": a second block would fit");
}

void check_layout(const AdapterLayout& at, const Device& device, int chunk, int columns, bool second_x,
                  const std::string& name) {
  const int rows_panel = at.block_rows * kPanelBytes, weights_panel = std::max(chunk, columns) * kPanelBytes;
  const int x = at.x_resident ? at.panels * rows_panel : 0;
  const int weights = at.weights_resident ? 2 * at.panels * at.slices * columns * kPanelBytes : 0;
  const bool fetches_rows = !at.x_resident || second_x;
  check::expect(at.hidden_at >= x, name + ": hidden numbers in the panels of x");
  check::expect(at.weights_at >= at.hidden_at + at.slices * rows_panel, name + ": weights in the hidden numbers");
  check::expect(at.ring_at >= at.weights_at + weights, name + ": the ring in the weights");
  check::expect(!fetches_rows || at.stage_weights_at >= rows_panel, name + ": a slot's weights in its rows");
  check::expect(at.weights_resident || at.stage_bytes >= at.stage_weights_at + weights_panel, name + ": a short slot");
  check::expect(at.shared_bytes >= at.ring_at + at.stages * at.stage_bytes, name + ": a short ring");
  check::expect(at.shared_bytes <= device.shared_per_block, name + ": more shared memory than there is");
  check::expect(at.block_rows % 32 == 0 && 2 * at.block_rows <= kMaxThreads, name + ": a block of another size");
  check::expect(at.stages == 2 || (at.stages == 3 && device.arch >= 800), name + ": a ring of another size");
}

template <class T>
void check_plans(const char* type, bool may_fail) {
  int64_t plans = 0;
  for (const Device& device : kDevices)
    for (int64_t width = 96; width <= 3072; width += 8)
      for (const int64_t hidden : {8, 24, 64, 72, 128, 200, 256})
        for (const int64_t rows : {1, 49, 4096, 1 << 20})
          for (const bool keep_x : {false, true})
            for (const bool second_x : {false, true}) {
              const auto plan = plan_adapter<T>(device, rows, width, hidden, keep_x, second_x);
              const std::string name = std::string(type) + " sm_" + std::to_string(device.arch / 10) + ", D " +
                                       std::to_string(width) + ", d " + std::to_string(hidden);
              check::expect(plan || keep_x || may_fail, name + ": no plan");
              if (!plan) continue;
              ++plans;
              check_occupancy(*plan, device, name);
              check_layout(plan->layout, device, plan->chunk, kPanelColumns<T>, second_x, name);
              check::expect(plan->blocks >= 1 && plan->blocks <= plan->layout.tiles, name + ": blocks without rows");
              check::expect(int64_t{plan->layout.tiles} * plan->layout.block_rows >= rows, name + ": rows left out");
              check::expect(!keep_x || plan->layout.x_resident, name + ": x must stay");
            }
  std::printf("%s: %lld plans\n", type, static_cast<long long>(plans));
}

// What the kernels cannot read in units of 16 bytes, or hold, is not theirs.
void check_refusals() {
  const Device& device = kDevices[2];
  check::expect(!plan_adapter<Half>(device, 10, 100, 64, false, false), "D of half must be a multiple of 8");
  check::expect(!plan_adapter<Half>(device, 10, 128, 20, false, false), "d of half must be a multiple of 8");
  check::expect(!plan_adapter<float>(device, 10, 98, 64, false, false), "D of float must be a multiple of 4");
  check::expect(!plan_adapter<Half>(device, 10, 128, 264, false, false), "d is at most 256");
  check::expect(!plan_adapter<Half>(device, 0, 128, 64, false, false), "no rows");
  check::expect(!plan_adapter<Half>(device, int64_t{1} << 40, 128, 64, false, false), "more tiles than an int counts");
  check::expect(!plan_adapter<Half>(device, 10, 1 << 20, 64, false, false), "too wide");
  check::expect(!plan_adapter<Half>(device, 10, 8192, 64, true, false), "rows that do not fit whole");
}

}  // namespace

int main() {
  check_plans<Half>("half", false);
  check_plans<float>("float", true);
  check_refusals();
  return check::exit_status();
}
