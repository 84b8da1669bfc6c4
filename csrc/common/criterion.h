// The rules by which accumulate_scores_ adds. Needs nothing, so that kernels of any kind can include it.
#pragma once

namespace sfa {

enum class Criterion : int { kGradient, kAbsolute, kSquared };

}  // namespace sfa
