// AVX-512 with VNNI: vpdpbusd on 512 bits.
#include <immintrin.h>

#include "isa.h"

namespace eq {
namespace {

#include "avx512_base.inl"

}  // namespace

const Isa* avx512_vnni_isa() {
  static const Format f32 = make_f32(), u8 = make_u8(), s16 = make_s16();
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_AVX512_VNNI;
    made.f32 = &f32;
    made.u8 = &u8;
    made.s16 = &s16;
    return made;
  }();
  return &isa;
}

}  // namespace eq
