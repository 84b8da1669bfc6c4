#include "adapter_norm_test.h"

int main(int count, char** arguments) {
  return check::test_adapter_norm<sfa::cuda::Tf32Math, float>(check::read_case(count, arguments, 2e-3));
}
