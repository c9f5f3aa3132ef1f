// The Python module: checks shapes and types, releases the interpreter lock, calls the C face.
//
// Every call takes `repeats` and returns the seconds it took, so that timing costs no interpreter time.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "evoquant/kernels.h"
#include "strided.h"

namespace nb = nanobind;
using nb::ndarray;

namespace {

template <class T, int N>
using Strided = ndarray<T, nb::ndim<N>, nb::device::cpu>;
template <class T>
using Flat = ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Dense = ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Any = ndarray<T, nb::c_contig, nb::device::cpu>;

void check(int status) {
  if (status < 0) throw std::runtime_error(eq_last_error());
}

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

std::vector<char> eviction;  // streamed through the caches before each run, if not empty

// Seconds on a clock: with one thread the time that it computed, without that of other programs on its core.
double seconds_now() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec now;
  if (eq_threads() == 1 && clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0) return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Run>
double timed(int repeats, const Run& run, const void* input = nullptr, size_t input_bytes = 0) {
  nb::gil_scoped_release release;
  using Clock = std::chrono::steady_clock;
  int status = 0;
  if (eviction.empty() || repeats == 0) {
    const double start = seconds_now();
    for (int i = 0; i < repeats && status == 0; ++i) status = run();
    const double end = seconds_now();
    if (status < 0) throw std::runtime_error(eq_last_error());
    return end - start;
  }
  Clock::duration total{};
  for (int i = 0; i < repeats && status == 0; ++i) {
    for (size_t at = 0; at < eviction.size(); at += 64) eviction[at] = (char)(eviction[at] + 1);
    volatile char sink = 0;
    for (size_t at = 0; at < input_bytes; at += 64) sink = static_cast<const char*>(input)[at];
    (void)sink;
    const auto start = Clock::now();
    status = run();
    total += Clock::now() - start;
  }
  if (status < 0) throw std::runtime_error(eq_last_error());
  return std::chrono::duration<double>(total).count();
}

template <class Array>
auto* data_or_null(const std::optional<Array>& array) {
  return array ? array->data() : nullptr;
}

const eq_quantizer* pointer(const std::optional<eq_quantizer>& q) { return q ? &*q : nullptr; }

// Real values or bytes of codes, to read and to write.
template <int N>
using Source = ndarray<nb::ro, nb::ndim<N>, nb::device::cpu>;
template <int N>
using DenseSource = ndarray<nb::ro, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <int N>
using Target = ndarray<nb::ndim<N>, nb::c_contig, nb::device::cpu>;

// Where a product reads and writes, and the quantizer of what it writes. Holds pointers only.
struct Ends {
  const float* x = nullptr;
  float* out = nullptr;
  const uint8_t* x_codes = nullptr;
  uint8_t* out_codes = nullptr;
  std::optional<eq_quantizer> to;

  template <class X, class Y>
  Ends(const X& from, const Y& target, const std::optional<eq_quantizer>& quantizer) : to(quantizer) {
    require(is_real(from) || from.dtype() == nb::dtype<uint8_t>(), "x must be float32, or uint8 codes");
    require(is_real(target) || target.dtype() == nb::dtype<uint8_t>(), "out must be float32, or uint8 codes");
    require(is_real(target) != quantizer.has_value(), "codes of the result need a quantizer, real values have none");
    (is_real(from) ? reinterpret_cast<const void*&>(x) : reinterpret_cast<const void*&>(x_codes)) = from.data();
    (is_real(target) ? reinterpret_cast<void*&>(out) : reinterpret_cast<void*&>(out_codes)) = const_cast<void*>((const void*)target.data());
  }
  template <class Array>
  static bool is_real(const Array& array) { return array.dtype() == nb::dtype<float>(); }
  size_t value_bytes() const { return x ? 4 : 1; }
  const void* source() const { return x ? (const void*)x : x_codes; }
  eq_code_tensors codes() const { return {x_codes, out_codes, to ? &*to : nullptr}; }
};

int out_size(int size, int pad, int dilation, int kernel, int stride) {
  return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
}

struct Contraction {
  eq_contraction* handle = nullptr;
  eq_contraction_spec spec;
  int isa;
  Contraction(int isa_id, const eq_contraction_spec& s, std::optional<Dense<const int8_t, 4>> codes,
              std::optional<Dense<const float, 4>> weights, std::optional<Any<const float>> scales,
              std::optional<Flat<const float>> bias)
      : spec(s), isa(isa_id) {
    const size_t per_channel = (size_t)(s.group_size ? s.in_channels / s.groups / s.group_size : 1);
    const size_t count = (size_t)s.out_channels * s.kernel_h * s.kernel_w * (s.in_channels / s.groups);
    require(!codes || codes->size() == count, "weights do not have the size of the specification");
    require(!weights || weights->size() == count, "weights do not have the size of the specification");
    require(!scales || scales->size() == s.out_channels * per_channel, "scales do not fit the output channels");
    require(!bias || bias->size() == (size_t)s.out_channels, "bias does not fit the output channels");
    check(eq_contraction_create(&handle, isa, &spec, data_or_null(codes), data_or_null(weights), data_or_null(scales),
                                data_or_null(bias)));
  }
  Contraction(const Contraction&) = delete;
  void set_gains(Flat<const float> gains) {
    require(gains.size() == (size_t)spec.out_channels, "gains do not fit the output channels");
    eq_contraction_set_gains(handle, gains.data());
  }
  ~Contraction() { eq_contraction_destroy(handle); }

  double gemm(Source<2> x, const std::optional<eq_quantizer>& q, int activation, std::optional<Dense<const float, 2>> residual,
              Target<2> out, int repeats, const std::optional<eq_quantizer>& to) const {
    const size_t m = x.shape(0);
    require(x.shape(1) == (size_t)spec.in_channels && (x.stride(1) == 1 || x.shape(1) == 1), "x must be (m, k), k contiguous");
    require(out.shape(0) == m && out.shape(1) == (size_t)spec.out_channels, "out must be (m, n)");
    require(!residual || (residual->shape(0) == m && residual->shape(1) == out.shape(1)), "residual must be like out");
    const Ends ends(x, out, to);
    const eq_code_tensors codes = ends.codes();
    return timed(repeats, [&] {
      return eq_gemm_f32(handle, ends.x, x.stride(0), (int)m, pointer(q), activation, data_or_null(residual), ends.out, &codes);
    }, ends.source(), x.stride(0) == (int64_t)x.shape(1) ? x.size() * ends.value_bytes() : 0);
  }

  double gemm_s32(Any<const uint8_t> bytes, int m, Dense<int32_t, 2> out, int repeats) const {
    const size_t size = spec.operand == EQ_OPERAND_S16 ? 2 : 1;
    require(bytes.size() == (size_t)m * spec.in_channels * size, "codes must be (m, k)");
    require(out.shape(0) == (size_t)m && out.shape(1) == (size_t)spec.out_channels, "out must be (m, n)");
    return timed(repeats, [&] { return eq_gemm_s32(handle, bytes.data(), m, out.data()); });
  }

  void check_image(size_t h, size_t w, size_t c, size_t oh, size_t ow, size_t oc) const {
    require(c == (size_t)spec.in_channels, "x must be (h, w, in_channels)");
    require(oh == (size_t)out_size((int)h, spec.pad_h, spec.dilation_h, spec.kernel_h, spec.stride_h) &&
                ow == (size_t)out_size((int)w, spec.pad_w, spec.dilation_w, spec.kernel_w, spec.stride_w) &&
                oc == (size_t)spec.out_channels, "out must be (out_h, out_w, out_channels)");
  }

  double conv(DenseSource<3> x, const std::optional<eq_quantizer>& q, int activation,
              std::optional<Dense<const float, 3>> residual, Target<3> out, int repeats, const std::optional<eq_quantizer>& to) const {
    check_image(x.shape(0), x.shape(1), x.shape(2), out.shape(0), out.shape(1), out.shape(2));
    require(!residual || residual->size() == out.size(), "residual must be like out");
    const Ends ends(x, out, to);
    const eq_code_tensors codes = ends.codes();
    return timed(repeats, [&] {
      return eq_conv_f32(handle, ends.x, (int)x.shape(0), (int)x.shape(1), pointer(q), activation, data_or_null(residual),
                         ends.out, &codes);
    }, ends.source(), x.size() * ends.value_bytes());
  }

  double conv_s32(Dense<const uint8_t, 3> codes, int zero_point, Dense<int32_t, 3> out, int repeats) const {
    require(spec.operand == EQ_OPERAND_U8, "the handle must take u8 codes");
    check_image(codes.shape(0), codes.shape(1), codes.shape(2), out.shape(0), out.shape(1), out.shape(2));
    return timed(repeats, [&] {
      return eq_conv_s32(handle, codes.data(), (int)codes.shape(0), (int)codes.shape(1), zero_point, out.data());
    });
  }
};

struct Depthwise {
  eq_depthwise* handle = nullptr;
  eq_contraction_spec spec;
  Depthwise(int isa, const eq_contraction_spec& s, std::optional<Dense<const int8_t, 3>> codes,
            std::optional<Dense<const float, 3>> weights, std::optional<Flat<const float>> scales,
            std::optional<Flat<const float>> bias)
      : spec(s) {
    const size_t count = (size_t)s.kernel_h * s.kernel_w * s.in_channels;
    require(!codes || codes->size() == count, "weights must be (kernel_h, kernel_w, channels)");
    require(!weights || weights->size() == count, "weights must be (kernel_h, kernel_w, channels)");
    require(!scales || scales->size() == (size_t)s.in_channels, "scales do not fit the channels");
    require(!bias || bias->size() == (size_t)s.in_channels, "bias does not fit the channels");
    check(eq_depthwise_create(&handle, isa, &spec, data_or_null(codes), data_or_null(weights), data_or_null(scales),
                              data_or_null(bias)));
  }
  Depthwise(const Depthwise&) = delete;
  ~Depthwise() { eq_depthwise_destroy(handle); }

  double run(DenseSource<3> x, const std::optional<eq_quantizer>& q, int activation,
             std::optional<Dense<const float, 3>> residual, Target<3> out, int repeats, const std::optional<eq_quantizer>& to) const {
    require(x.shape(2) == (size_t)spec.in_channels && out.shape(2) == x.shape(2), "x must be (h, w, channels)");
    const int h = (int)x.shape(0), w = (int)x.shape(1);
    require((int)out.shape(0) == out_size(h, spec.pad_h, spec.dilation_h, spec.kernel_h, spec.stride_h) &&
                (int)out.shape(1) == out_size(w, spec.pad_w, spec.dilation_w, spec.kernel_w, spec.stride_w),
            "out must be (out_h, out_w, channels)");
    require(!residual || residual->size() == out.size(), "residual must be like out");
    const Ends ends(x, out, to);
    const eq_code_tensors codes = ends.codes();
    return timed(repeats, [&] {
      return eq_depthwise_f32(handle, ends.x, h, w, pointer(q), activation, data_or_null(residual), ends.out, &codes);
    }, ends.source(), x.size() * ends.value_bytes());
  }
};

// Sizes of a product (m, k) by b (k, n), and where b lies.
eq_matmul_shape second_shape(size_t m, const Strided<const float, 4>& b) {
  ptrdiff_t b_row = b.stride(2), b_col = b.stride(3);
  if (b.shape(3) == 1) b_col = b_row == 1 ? (ptrdiff_t)b.shape(2) : 1;
  if (b.shape(2) == 1) b_row = b_col == 1 ? (ptrdiff_t)b.shape(3) : 1;
  return {(int)b.shape(0), (int)b.shape(1), (int)m, (int)b.shape(3), (int)b.shape(2), 0, 0, 0,
          b.stride(0), b.stride(1), b_row, b_col, 0, 0, 0};
}

void set_first(eq_matmul_shape& s, const Strided<const float, 4>& a) {
  require((int)a.shape(0) == s.outer && (int)a.shape(1) == s.inner && (int)a.shape(3) == s.k, "expected a (b, h, m, k) and b (b, h, k, n)");
  require(a.stride(3) == 1 || a.shape(3) == 1, "the last axis of a must be contiguous");
  s.a_outer = a.stride(0), s.a_inner = a.stride(1), s.a_row = a.stride(2);
}

void set_out(eq_matmul_shape& s, const Strided<float, 4>& out) {
  require((int)out.shape(0) == s.outer && (int)out.shape(1) == s.inner && (int)out.shape(2) == s.m && (int)out.shape(3) == s.n,
          "out must be (b, h, m, n)");
  require(out.stride(3) == 1 || out.shape(3) == 1, "the last axis of out must be contiguous");
  s.out_outer = out.stride(0), s.out_inner = out.stride(1), s.out_row = out.stride(2);
}

eq_matmul_shape matmul_shape(const Strided<const float, 4>& a, const Strided<const float, 4>& b, const Strided<float, 4>& out) {
  eq_matmul_shape shape = second_shape(a.shape(2), b);
  set_first(shape, a);
  set_out(shape, out);
  return shape;
}

// How the operands of one product of an attention become codes; keeps the scales.
struct AttentionProduct {
  std::optional<eq_quantizer> quantizer;
  std::optional<Flat<const float>> b_scales;
  int b_q_max;
  float factor;

  eq_product with(const eq_matmul_shape& shape) const {
    const int count = b_scales ? (int)b_scales->size() : 0;
    require(count == 0 || count == 1 || count == shape.inner, "b_scales must be one, or one per head");
    return {shape, quantizer.has_value(), quantizer ? *quantizer : eq_quantizer{}, data_or_null(b_scales), count, b_q_max, factor};
  }
};

// Everything that one attention takes; copies keep its arrays alive.
struct Attention {
  int isa;
  Strided<const float, 4> q, k, v;
  AttentionProduct scores, weighted;
  bool relative;
  Strided<float, 4> out;
  eq_product first, second;

  Attention(int isa_id, Strided<const float, 4> queries, Strided<const float, 4> keys, Strided<const float, 4> values,
            const AttentionProduct& of_scores, const AttentionProduct& of_weighted, bool is_relative, Strided<float, 4> target)
      : isa(isa_id), q(queries), k(keys), v(values), scores(of_scores), weighted(of_weighted), relative(is_relative), out(target) {
    eq_matmul_shape qk = second_shape(q.shape(2), k), av = second_shape(q.shape(2), v);
    set_first(qk, q);
    set_out(av, out);
    require(qk.outer == av.outer && qk.inner == av.inner && qk.n == av.k, "expected k (b, h, k, n) and v (b, h, n, d)");
    first = scores.with(qk);
    second = weighted.with(av);
  }
  int run(int part = EQ_ATTENTION_WHOLE) const {
    return eq_attention_f32(isa, &first, &second, q.data(), k.data(), v.data(), relative, out.data(), part);
  }
};

double matmul(int isa, Strided<const float, 4> a, Strided<const float, 4> b, const std::optional<eq_quantizer>& qa,
              std::optional<Flat<const float>> b_scales, int b_q_max, float factor, Strided<float, 4> out, int repeats) {
  const eq_matmul_shape shape = matmul_shape(a, b, out);
  const int count = b_scales ? (int)b_scales->size() : 0;
  return timed(repeats, [&] {
    return eq_matmul_f32(isa, &shape, a.data(), b.data(), pointer(qa), data_or_null(b_scales), count, b_q_max, factor, out.data());
  });
}

template <class A, class B>
void require_same(const A& a, const B& b) {
  require(a.size() == b.size(), "operands must have equal sizes");
}

void bind_machine(nb::module_& m) {
  m.attr("ISA_COUNT") = (int)EQ_ISA_COUNT;
  m.def("isa_name", &eq_isa_name);
  m.def("isa_built", [](int isa) { return eq_isa_built(isa) != 0; });
  m.def("isa_supported", [](int isa) { return eq_isa_supported(isa) != 0; });
  m.def("isa_default", [] {
    const int isa = eq_isa_default();
    check(isa);
    return isa;
  });
  m.def("cap_cpuid", [](int isa) { check(eq_cap_cpuid(isa)); });
  m.def("uncap_cpuid", &eq_uncap_cpuid);
  m.def("compiler", &eq_compiler);
  m.def("version", &eq_version);
  m.def("set_threads", &eq_set_threads);
  m.def("threads", &eq_threads);
  m.def("set_eviction", [](size_t bytes) { eviction.assign(bytes, 0); });
  m.def("peak", [](int isa, const std::string& format, int depth, int64_t rounds) {
    double macs = 0;
    const double seconds = timed(1, [&] {
      macs = eq_peak_macs(isa, format.c_str(), depth, rounds);
      return macs < 0 ? -1 : 0;
    });
    return macs / seconds;
  });
}

void bind_handles(nb::module_& m) {
  nb::class_<eq_quantizer>(m, "Quantizer")
      .def("__init__", [](eq_quantizer* q, float scale, int zero_point, int q_min, int q_max, int log2_levels,
                          const std::vector<int>& levels) {
        new (q) eq_quantizer{scale, zero_point, q_min, q_max, log2_levels, (int32_t)levels.size(), {}};
        if (levels.empty()) return;
        require(std::is_sorted(levels.begin(), levels.end()) && levels.front() >= 0 && levels.back() <= 255, "levels must ascend within [0, 255]");
        size_t at = 0;  // half way to the lower level
        for (int code = 0; code < 256; ++code) {
          while (at + 1 < levels.size() && 2 * code > levels[at] + levels[at + 1]) ++at;
          q->nearest[code] = (uint8_t)levels[at];
        }
      });
  nb::class_<eq_contraction_spec>(m, "Spec")
      .def_ro("operand", &eq_contraction_spec::operand)
      .def("__init__", [](eq_contraction_spec* s, const std::vector<int>& geometry, int operand, int operand_max,
                          int weight_bits, std::optional<std::vector<int>> codebook, int group_size) {
        require(geometry.size() == 11, "geometry has eleven numbers");
        new (s) eq_contraction_spec{};
        int* fields[] = {&s->out_channels, &s->in_channels, &s->kernel_h, &s->kernel_w, &s->stride_h, &s->stride_w,
                         &s->pad_h, &s->pad_w, &s->dilation_h, &s->dilation_w, &s->groups};
        for (size_t i = 0; i < 11; ++i) {
          require(geometry[i] >= (i == 6 || i == 7 ? 0 : 1), "sizes must be positive");
          *fields[i] = geometry[i];
        }
        s->operand = operand;
        s->operand_max = operand_max;
        s->weight_bits = weight_bits;
        s->group_size = group_size;
        if (!codebook) return;
        require(codebook->size() <= 16, "a codebook has at most 16 entries");
        s->has_codebook = 1;
        for (size_t i = 0; i < codebook->size(); ++i) s->codebook[i] = (int8_t)(*codebook)[i];
      }, nb::arg("geometry"), nb::arg("operand"), nb::arg("operand_max"), nb::arg("weight_bits"),
         nb::arg("codebook").none(), nb::arg("group_size"));
  nb::class_<Contraction>(m, "Contraction")
      .def(nb::init<int, const eq_contraction_spec&, std::optional<Dense<const int8_t, 4>>,
                    std::optional<Dense<const float, 4>>, std::optional<Any<const float>>,
                    std::optional<Flat<const float>>>(),
           nb::arg("isa"), nb::arg("spec"), nb::arg("codes").none(), nb::arg("weights").none(),
           nb::arg("scales").none(), nb::arg("bias").none())
      .def("set_gains", &Contraction::set_gains, nb::arg("gains"))
      .def("gemm", &Contraction::gemm, nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
           nb::arg("residual").none(), nb::arg("out"), nb::arg("repeats") = 1, nb::arg("to") = nb::none())
      .def("gemm_s32", &Contraction::gemm_s32, nb::arg("codes"), nb::arg("m"), nb::arg("out"), nb::arg("repeats") = 1)
      .def("conv", &Contraction::conv, nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
           nb::arg("residual").none(), nb::arg("out"), nb::arg("repeats") = 1, nb::arg("to") = nb::none())
      .def("conv_s32", &Contraction::conv_s32, nb::arg("codes"), nb::arg("zero_point"), nb::arg("out"), nb::arg("repeats") = 1)
      .def_prop_ro("bytes", [](const Contraction& c) { return eq_contraction_bytes(c.handle); })
      .def_prop_ro("format", [](const Contraction& c) { return eq_contraction_format(c.handle); })
      .def_prop_ro("depth", [](const Contraction& c) { return eq_contraction_depth(c.handle); });
  nb::class_<Depthwise>(m, "Depthwise")
      .def(nb::init<int, const eq_contraction_spec&, std::optional<Dense<const int8_t, 3>>,
                    std::optional<Dense<const float, 3>>, std::optional<Flat<const float>>,
                    std::optional<Flat<const float>>>(),
           nb::arg("isa"), nb::arg("spec"), nb::arg("codes").none(), nb::arg("weights").none(),
           nb::arg("scales").none(), nb::arg("bias").none())
      .def("run", &Depthwise::run, nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
           nb::arg("residual").none(), nb::arg("out"), nb::arg("repeats") = 1, nb::arg("to") = nb::none())
      .def_prop_ro("bytes", [](const Depthwise& d) { return eq_depthwise_bytes(d.handle); });
  m.def("matmul", &matmul, nb::arg("isa"), nb::arg("a"), nb::arg("b"), nb::arg("quantizer").none(),
        nb::arg("b_scales").none(), nb::arg("b_q_max"), nb::arg("factor"), nb::arg("out"), nb::arg("repeats") = 1);
}

void bind_attention(nb::module_& m) {
  nb::class_<AttentionProduct>(m, "AttentionProduct")
      .def("__init__", [](AttentionProduct* p, std::optional<eq_quantizer> quantizer, std::optional<Flat<const float>> b_scales,
                          int b_q_max, float factor) { new (p) AttentionProduct{quantizer, b_scales, b_q_max, factor}; },
           nb::arg("quantizer").none(), nb::arg("b_scales").none(), nb::arg("b_q_max"), nb::arg("factor"));
  m.def("attention", [](int isa, Strided<const float, 4> q, Strided<const float, 4> k, Strided<const float, 4> v,
                        const AttentionProduct& scores, const AttentionProduct& weighted, bool relative, Strided<float, 4> out,
                        int repeats, int part) {
    const Attention attention(isa, q, k, v, scores, weighted, relative, out);
    return timed(repeats, [&] { return attention.run(part); });
  }, nb::arg("isa"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("scores"), nb::arg("weighted"), nb::arg("relative"),
     nb::arg("out"), nb::arg("repeats") = 1, nb::arg("part") = (int)EQ_ATTENTION_WHOLE);
}

void bind_codes(nb::module_& m) {
  m.def("pack_bits", [](Flat<const uint8_t> indices, int bits, Flat<uint8_t> packed) {
    require(bits >= 1 && bits <= 8 && packed.size() == eq_packed_bytes(indices.size(), bits), "packed has another size");
    check(eq_pack_bits(indices.data(), indices.size(), bits, packed.data()));
  });
  m.def("unpack_bits", [](Flat<const uint8_t> packed, int bits, Flat<uint8_t> indices) {
    require(bits >= 1 && bits <= 8 && packed.size() == eq_packed_bytes(indices.size(), bits), "packed has another size");
    check(eq_unpack_bits(packed.data(), indices.size(), bits, indices.data()));
  });
  m.def("packed_bytes", &eq_packed_bytes);
  m.def("quantize_u8", [](int isa, Any<const float> x, const eq_quantizer& q, Any<uint8_t> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_quantize_u8(isa, x.data(), x.size(), &q, out.data()); });
  });
  m.def("quantize_s16", [](int isa, Any<const float> x, const eq_quantizer& q, Any<int16_t> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_quantize_s16(isa, x.data(), x.size(), &q, out.data()); });
  });
  m.def("fake_quantize", [](int isa, Any<const float> x, const eq_quantizer& q, Any<float> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_fake_quantize(isa, x.data(), x.size(), &q, out.data()); });
  });
  m.def("dequantize_u8", [](int isa, Any<const uint8_t> x, const eq_quantizer& q, Any<float> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_dequantize_u8(isa, x.data(), x.size(), &q, out.data()); });
  });
  m.def("requantize", [](int isa, Dense<const int32_t, 2> acc, std::optional<Flat<const int32_t>> bias,
                         std::optional<Flat<const int32_t>> multiplier, Flat<const int8_t> shift, const eq_quantizer& to,
                         std::optional<Flat<const uint8_t>> table, Dense<uint8_t, 2> out, int repeats) {
    require_same(acc, out);
    const int rows = (int)acc.shape(0), channels = (int)acc.shape(1);
    require((int)shift.size() == channels && (!bias || (int)bias->size() == channels) &&
                (!multiplier || (int)multiplier->size() == channels) && (!table || table->size() == 256) &&
                to.q_min >= 0 && to.q_max <= 255,
            "per-channel operands do not fit");
    return timed(repeats, [&] {
      return multiplier ? eq_requantize(isa, acc.data(), rows, channels, data_or_null(bias), multiplier->data(),
                                        shift.data(), &to, data_or_null(table), out.data())
                        : eq_requantize_shift(isa, acc.data(), rows, channels, data_or_null(bias), shift.data(), &to,
                                              data_or_null(table), out.data());
    });
  }, nb::arg("isa"), nb::arg("acc"), nb::arg("bias").none(), nb::arg("multiplier").none(), nb::arg("shift"),
     nb::arg("to"), nb::arg("table").none(), nb::arg("out"), nb::arg("repeats") = 1);
  m.def("lookup_u8", [](int isa, Any<const uint8_t> x, Flat<const uint8_t> table, Any<uint8_t> out, int repeats) {
    require_same(x, out);
    require(table.size() == 256, "a table has 256 entries");
    return timed(repeats, [&] { return eq_lookup_u8(isa, x.data(), x.size(), table.data(), out.data()); });
  });
  m.def("add_u8", [](int isa, Any<const uint8_t> a, const eq_quantizer& qa, Any<const uint8_t> b,
                     const eq_quantizer& qb, const eq_quantizer& to, Any<uint8_t> out, int repeats) {
    require_same(a, out);
    require_same(b, out);
    return timed(repeats, [&] { return eq_add_u8(isa, a.data(), &qa, b.data(), &qb, a.size(), &to, out.data()); });
  });
}

// Checked views of the points of a rounding.
struct Points {
  Dense<const float, 3> scale;
  std::optional<Flat<const float>> table;
  float lower, upper;
  std::optional<Dense<const float, 3>> lowers, uppers;

  eq_rounding_points of(const Dense<float, 3>& weight) const {
    const auto fits = [&](const auto& array) {
      return array.shape(0) == scale.shape(0) && array.shape(1) == weight.shape(1) && array.shape(2) == weight.shape(2);
    };
    require(fits(scale) && (!lowers || fits(*lowers)) && (!uppers || fits(*uppers)), "scales and bounds need the shape of the weight");
    return {scale.data(), data_or_null(table), (int32_t)(table ? table->size() : 0), lower, upper, data_or_null(lowers), data_or_null(uppers)};
  }
};

void bind_rounding(nb::module_& m) {
  nb::class_<Points>(m, "RoundingPoints")
      .def("__init__", [](Points* p, Dense<const float, 3> scale, std::optional<Flat<const float>> table, float lower, float upper,
                          std::optional<Dense<const float, 3>> lowers, std::optional<Dense<const float, 3>> uppers) {
        new (p) Points{scale, table, lower, upper, lowers, uppers};
      }, nb::arg("scale"), nb::arg("table").none(), nb::arg("lower"), nb::arg("upper"), nb::arg("lowers").none(), nb::arg("uppers").none());
  m.def("round_compensated", [](int isa, Dense<float, 3> weight, Dense<const float, 3> factors, const Points& points) {
    const eq_rounding_points on = points.of(weight);
    require(factors.shape(0) == weight.shape(0) && factors.shape(1) == weight.shape(2) && factors.shape(2) == weight.shape(2),
            "factors need the shape (batches, columns, columns)");
    timed(1, [&] {
      return eq_round_compensated(isa, weight.data(), (int64_t)weight.shape(0), (int)weight.shape(1), (int)weight.shape(2), factors.data(),
                                  &on, (int64_t)points.scale.shape(0));
    });
  });
  m.def("best_levels", [](Flat<const double> mass, Flat<const double> first, Flat<const double> second, Flat<int32_t> levels) {
    require_same(mass, first);
    require_same(mass, second);
    double cost = 0.0;
    timed(1, [&] {
      return eq_best_levels(mass.data(), first.data(), second.data(), (int)mass.size(), (int)levels.size(), levels.data(), &cost);
    });
    return cost;
  });
  m.def("revise_rounding", [](int isa, Dense<float, 3> weight, Dense<const float, 3> gradient, Dense<const float, 3> hessian,
                              const Points& points, int sweeps) {
    const eq_rounding_points on = points.of(weight);
    require_same(weight, gradient);
    require(points.scale.shape(0) == weight.shape(0) && hessian.shape(0) == weight.shape(0) && hessian.shape(1) == weight.shape(2) &&
                hessian.shape(2) == weight.shape(2),
            "the Hessian needs the shape (groups, columns, columns)");
    timed(1, [&] {
      return eq_revise_rounding(isa, weight.data(), gradient.data(), (int64_t)weight.shape(0), (int)weight.shape(1), (int)weight.shape(2),
                                hessian.data(), &on, sweeps);
    });
  });
}

void bind_float(nb::module_& m) {
  m.def("activate", [](int isa, int kind, Any<const float> x, Any<float> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_activate(isa, kind, x.data(), x.size(), out.data()); });
  });
  m.def("add", [](int isa, Any<const float> a, Any<const float> b, Any<float> out, int repeats) {
    require_same(a, out);
    require_same(b, out);
    return timed(repeats, [&] { return eq_add(isa, a.data(), b.data(), a.size(), out.data()); });
  });
  m.def("mul", [](int isa, Any<const float> a, Any<const float> b, Any<float> out, int repeats) {
    require_same(a, out);
    require_same(b, out);
    return timed(repeats, [&] { return eq_mul(isa, a.data(), b.data(), a.size(), out.data()); });
  });
  m.def("scale_rows", [](int isa, Dense<const float, 2> x, Flat<const float> scale, std::optional<Flat<const float>> shift,
                         Dense<float, 2> out, int repeats) {
    require_same(x, out);
    require(scale.size() == x.shape(1) && (!shift || shift->size() == x.shape(1)), "scale must have one value per column");
    return timed(repeats, [&] {
      return eq_scale_rows(isa, x.data(), x.shape(0), (int)x.shape(1), scale.data(), data_or_null(shift), out.data());
    });
  }, nb::arg("isa"), nb::arg("x"), nb::arg("scale"), nb::arg("shift").none(), nb::arg("out"), nb::arg("repeats") = 1);
  m.def("softmax", [](int isa, Dense<const float, 2> x, Dense<float, 2> out, int repeats) {
    require_same(x, out);
    return timed(repeats, [&] { return eq_softmax(isa, x.data(), x.shape(0), (int)x.shape(1), out.data()); });
  });
  m.def("layer_norm", [](int isa, Dense<const float, 2> x, Flat<const float> weight, Flat<const float> bias,
                         float epsilon, Dense<float, 2> out, int repeats) {
    require_same(x, out);
    require(weight.size() == x.shape(1) && bias.size() == x.shape(1), "weight and bias must have one value per column");
    return timed(repeats, [&] {
      return eq_layer_norm(isa, x.data(), x.shape(0), (int)x.shape(1), weight.data(), bias.data(), epsilon, out.data());
    });
  });
  m.def("group_norm", [](int isa, Dense<const float, 2> x, int groups, Flat<const float> weight, Flat<const float> bias,
                         float epsilon, Dense<float, 2> out, int repeats) {
    require_same(x, out);
    require(weight.size() == x.shape(1) && bias.size() == x.shape(1), "weight and bias must have one value per column");
    return timed(repeats, [&] {
      return eq_group_norm(isa, x.data(), x.shape(0), (int)x.shape(1), groups, weight.data(), bias.data(), epsilon,
                           out.data());
    });
  });
  m.def("mean_rows", [](int isa, Dense<const float, 2> x, Flat<float> out, int repeats) {
    require(out.size() == x.shape(1), "out must have one value per column");
    return timed(repeats, [&] { return eq_mean_rows(isa, x.data(), (int)x.shape(0), (int)x.shape(1), out.data()); });
  });
  m.def("max_pool", [](int isa, Dense<const float, 3> x, int kernel, int stride, int pad, Dense<float, 3> out, int repeats) {
    require(kernel > 0 && stride > 0 && out.shape(2) == x.shape(2) &&
                (int)out.shape(0) == out_size((int)x.shape(0), pad, 1, kernel, stride) &&
                (int)out.shape(1) == out_size((int)x.shape(1), pad, 1, kernel, stride),
            "out must be (out_h, out_w, channels)");
    return timed(repeats, [&] {
      return eq_max_pool(isa, x.data(), (int)x.shape(0), (int)x.shape(1), (int)x.shape(2), kernel, stride, pad, out.data());
    });
  });
}

#include "program.inl"

}  // namespace

NB_MODULE(_native, m) {
  bind_machine(m);
  bind_handles(m);
  bind_attention(m);
  bind_codes(m);
  bind_rounding(m);
  bind_float(m);
  bind_program(m);
}
