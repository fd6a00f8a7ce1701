#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace resnet_fused::cpu {
namespace {

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
#else
  return Isa::portable;
#endif
}

Isa choose() {
  const Isa here = best();
  const char* wanted = std::getenv("RESNET_FUSED_CPU_ISA");
  for (Isa lower : {Isa::portable, Isa::avx2}) {
    if (wanted && lower < here && !std::strcmp(wanted, isa_name(lower))) return lower;
  }
  return here;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

}  // namespace resnet_fused::cpu
