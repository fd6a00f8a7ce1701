// The instruction set that the CPU launchers use. It is chosen once per process.
#pragma once

namespace resnet_fused::cpu {

// In ascending order: each set includes the sets before it. amx: AVX-512 with bfloat16, and the matrix unit.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx };

// The best set of this CPU, or RESNET_FUSED_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx if that set is lower.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace resnet_fused::cpu

// For a source outside of the folders isa/, in namespace resnet_fused::cpu: declares what one inside defines once per
// instruction set, and picks the best definition for this machine. The BF16 pair is for sources named *_bf16*.
#if defined(__x86_64__)
#define RESNET_FUSED_PER_ISA(...) \
  namespace portable {            \
  __VA_ARGS__                     \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__                     \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__                     \
  }
#define RESNET_FUSED_BEST(name) (isa() >= Isa::avx512 ? avx512::name : isa() >= Isa::avx2 ? avx2::name : portable::name)
#define RESNET_FUSED_PER_ISA_BF16(...) \
  RESNET_FUSED_PER_ISA(__VA_ARGS__)    \
  namespace avx512_bf16 {              \
  __VA_ARGS__                          \
  }
#define RESNET_FUSED_BEST_BF16(name) (isa() >= Isa::avx512_bf16 ? avx512_bf16::name : RESNET_FUSED_BEST(name))
#else
#define RESNET_FUSED_PER_ISA(...) \
  namespace portable {            \
  __VA_ARGS__                     \
  }
#define RESNET_FUSED_BEST(name) portable::name
#define RESNET_FUSED_PER_ISA_BF16(...) RESNET_FUSED_PER_ISA(__VA_ARGS__)
#define RESNET_FUSED_BEST_BF16(name) RESNET_FUSED_BEST(name)
#endif
