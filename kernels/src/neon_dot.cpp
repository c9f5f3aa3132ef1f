// NEON with dot products (ARMv8.2): SDOT adds four products of signed bytes to an int32 sum.
#include <arm_neon.h>

#include "isa.h"

namespace eq {
namespace {

#include "neon_base.inl"

struct MacU8 {
  static constexpr int kBytes = 1, kFlip = 0x80, kSums = 1, kInstructions = 1;
  template <int LANE>
  static void add(int32x4_t (&sums)[kSums], int8x16_t x, int8x16_t w) {
    sums[0] = vdotq_laneq_s32(sums[0], w, x, LANE);
  }
};

}  // namespace

const Isa* neon_dot_isa() {
  static const Isa isa = make_isa<MacU8>(EQ_ISA_NEON_DOT);
  return &isa;
}

}  // namespace eq
