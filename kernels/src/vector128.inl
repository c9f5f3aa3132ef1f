// The primitives of vector.inl on 128 bits that need no instruction set. Included inside an anonymous namespace.

constexpr int VL = 4;
typedef float vf __attribute__((vector_size(16), may_alias));
typedef int vi __attribute__((vector_size(16), may_alias));
typedef float vf_loose __attribute__((vector_size(16), may_alias, aligned(4)));
typedef int vi_loose __attribute__((vector_size(16), may_alias, aligned(4)));

inline vf vload(const float* p) { return *(const vf_loose*)p; }
inline void vstore(float* p, vf x) { *(vf_loose*)p = x; }
inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }
inline vf vfloat(vi x) { return __builtin_convertvector(x, vf); }
inline vf vload_part(const float* p, int count) {
  vf x = {};
  for (int i = 0; i < count; ++i) x[i] = p[i];
  return x;
}
inline void vstore_part(float* p, vf x, int count) {
  for (int i = 0; i < count; ++i) p[i] = x[i];
}
