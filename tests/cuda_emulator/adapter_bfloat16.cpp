#include "adapter_test.h"

int main(int count, char** arguments) {
  return check::test_adapter<sfa::cuda::BFloat16Math>(check::read_case(count, arguments, 1e-2));
}
