#include "adapter_test.h"

int main(int count, char** arguments) {
  return check::test_adapter<sfa::cuda::HalfMath>(check::read_case(count, arguments, 2e-3));
}
