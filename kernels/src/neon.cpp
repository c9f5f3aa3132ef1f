// NEON of every 64-bit ARM: bytes are multiplied into 16 bits, and pairs of products added to 32.
#include <arm_neon.h>

#include "isa.h"

namespace eq {
namespace {

#include "neon_base.inl"

struct MacU8 {
  static constexpr int kBytes = 1, kFlip = 0x80, kSums = 2, kInstructions = 4;
  template <int LANE>
  static void add(int32x4_t (&sums)[kSums], int8x16_t x, int8x16_t w) {
    const int8x16_t codes = (int8x16_t)vdupq_laneq_s32((int32x4_t)x, LANE);
    sums[0] = vpadalq_s16(sums[0], vmull_s8(vget_low_s8(codes), vget_low_s8(w)));
    sums[1] = vpadalq_s16(sums[1], vmull_high_s8(codes, w));
  }
};

}  // namespace

const Isa* neon_isa() {
  static const Isa isa = make_isa<MacU8>(EQ_ISA_NEON);
  return &isa;
}

}  // namespace eq
