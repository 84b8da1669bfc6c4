#include "adapter_norm_test.h"

int main(int count, char** arguments) {
  return check::test_adapter_norm<sfa::cuda::HalfMath, sfa::cuda::Half>(check::read_case(count, arguments, 3e-3));
}
