// A network as a flat list of kernel calls on fixed memory, run without the interpreter. Part of binding.cpp.
//
// Each add checks its operands once, as the call of the same name does, and keeps what it points to alive.

struct Program {
  std::vector<std::function<int()>> steps;

  int run_once() const {
    for (const auto& step : steps) {
      const int status = step();
      if (status < 0) return status;
    }
    return 0;
  }
  double run(int repeats) const {
    return timed(repeats, [this] { return run_once(); });
  }
  std::vector<double> step_seconds(int repeats) const {
    nb::gil_scoped_release release;
    using Clock = std::chrono::steady_clock;
    std::vector<double> total(steps.size(), 0.0);
    for (int i = 0; i < repeats; ++i) {
      for (size_t at = 0; at < steps.size(); ++at) {
        const auto start = Clock::now();
        if (steps[at]() < 0) throw std::runtime_error(eq_last_error());
        total[at] += std::chrono::duration<double>(Clock::now() - start).count();
      }
    }
    for (double& seconds : total) seconds /= std::max(repeats, 1);
    return total;
  }
};

template <class T>
using AnyStrided = ndarray<T, nb::device::cpu>;

eq::StridedCopy strided_copy(const AnyStrided<const float>& x, const AnyStrided<float>& out, float factor) {
  require(x.ndim() == out.ndim(), "x and out must have the same shape");
  std::vector<eq::StridedAxis> axes;
  for (size_t i = 0; i < x.ndim(); ++i) {
    require(x.shape(i) == out.shape(i), "x and out must have the same shape");
    axes.push_back({(int64_t)x.shape(i), x.stride(i), out.stride(i)});
  }
  return {std::move(axes), factor};
}

void bind_program_products(nb::class_<Program>& program) {
  program
      .def("gemm", [](Program& p, const Contraction& c, Source<2> x, const std::optional<eq_quantizer>& q, int activation,
                      std::optional<Dense<const float, 2>> residual, Target<2> out, const std::optional<eq_quantizer>& to) {
        c.gemm(x, q, activation, residual, out, 0, to);
        p.steps.push_back([&c, x, q, activation, residual, out, ends = Ends(x, out, to)] {
          const eq_code_tensors codes = ends.codes();
          return eq_gemm_f32(c.handle, ends.x, x.stride(0), (int)x.shape(0), pointer(q), activation, data_or_null(residual),
                             ends.out, &codes);
        });
      }, nb::arg("handle"), nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
         nb::arg("residual").none(), nb::arg("out"), nb::arg("to").none(), nb::keep_alive<1, 2>())
      .def("conv", [](Program& p, const Contraction& c, DenseSource<3> x, const std::optional<eq_quantizer>& q, int activation,
                      std::optional<Dense<const float, 3>> residual, Target<3> out, const std::optional<eq_quantizer>& to) {
        c.conv(x, q, activation, residual, out, 0, to);
        p.steps.push_back([&c, x, q, activation, residual, out, ends = Ends(x, out, to)] {
          const eq_code_tensors codes = ends.codes();
          return eq_conv_f32(c.handle, ends.x, (int)x.shape(0), (int)x.shape(1), pointer(q), activation, data_or_null(residual),
                             ends.out, &codes);
        });
      }, nb::arg("handle"), nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
         nb::arg("residual").none(), nb::arg("out"), nb::arg("to").none(), nb::keep_alive<1, 2>())
      .def("depthwise", [](Program& p, const Depthwise& d, DenseSource<3> x, const std::optional<eq_quantizer>& q, int activation,
                           std::optional<Dense<const float, 3>> residual, Target<3> out, const std::optional<eq_quantizer>& to) {
        d.run(x, q, activation, residual, out, 0, to);
        p.steps.push_back([&d, x, q, activation, residual, out, ends = Ends(x, out, to)] {
          const eq_code_tensors codes = ends.codes();
          return eq_depthwise_f32(d.handle, ends.x, (int)x.shape(0), (int)x.shape(1), pointer(q), activation,
                                  data_or_null(residual), ends.out, &codes);
        });
      }, nb::arg("handle"), nb::arg("x"), nb::arg("quantizer").none(), nb::arg("activation"),
         nb::arg("residual").none(), nb::arg("out"), nb::arg("to").none(), nb::keep_alive<1, 2>())
      .def("matmul", [](Program& p, int isa, Strided<const float, 4> a, Strided<const float, 4> b,
                        const std::optional<eq_quantizer>& qa, std::optional<Flat<const float>> b_scales, int b_q_max,
                        float factor, Strided<float, 4> out) {
        const eq_matmul_shape shape = matmul_shape(a, b, out);
        const int count = b_scales ? (int)b_scales->size() : 0;
        require(count == 0 || count == 1 || count == shape.inner, "b_scales must be one, or one per head");
        p.steps.push_back([=] {
          return eq_matmul_f32(isa, &shape, a.data(), b.data(), pointer(qa), data_or_null(b_scales), count, b_q_max,
                               factor, out.data());
        });
      }, nb::arg("isa"), nb::arg("a"), nb::arg("b"), nb::arg("quantizer").none(), nb::arg("b_scales").none(),
         nb::arg("b_q_max"), nb::arg("factor"), nb::arg("out"))
      .def("attention", [](Program& p, int isa, Strided<const float, 4> q, Strided<const float, 4> k, Strided<const float, 4> v,
                           const AttentionProduct& scores, const AttentionProduct& weighted, bool relative, Strided<float, 4> out) {
        p.steps.push_back([attention = Attention(isa, q, k, v, scores, weighted, relative, out)] { return attention.run(); });
      }, nb::arg("isa"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("scores"), nb::arg("weighted"), nb::arg("relative"), nb::arg("out"));
}

void bind_program_tensors(nb::class_<Program>& program) {
  program
      .def("activate", [](Program& p, int isa, int kind, Any<const float> x, Any<float> out) {
        require_same(x, out);
        p.steps.push_back([=] { return eq_activate(isa, kind, x.data(), x.size(), out.data()); });
      })
      .def("add", [](Program& p, int isa, Any<const float> a, Any<const float> b, Any<float> out) {
        require_same(a, b);
        require_same(a, out);
        p.steps.push_back([=] { return eq_add(isa, a.data(), b.data(), a.size(), out.data()); });
      })
      .def("mul", [](Program& p, int isa, Any<const float> a, Any<const float> b, Any<float> out) {
        require_same(a, b);
        require_same(a, out);
        p.steps.push_back([=] { return eq_mul(isa, a.data(), b.data(), a.size(), out.data()); });
      })
      .def("scale_rows", [](Program& p, int isa, Dense<const float, 2> x, Flat<const float> scale,
                            std::optional<Flat<const float>> shift, Dense<float, 2> out) {
        require_same(x, out);
        require(scale.size() == x.shape(1) && (!shift || shift->size() == x.shape(1)), "expected a value per column");
        p.steps.push_back([=] {
          return eq_scale_rows(isa, x.data(), x.shape(0), (int)x.shape(1), scale.data(), data_or_null(shift), out.data());
        });
      }, nb::arg("isa"), nb::arg("x"), nb::arg("scale"), nb::arg("shift").none(), nb::arg("out"))
      .def("softmax", [](Program& p, int isa, Dense<const float, 2> x, Dense<float, 2> out) {
        require_same(x, out);
        p.steps.push_back([=] { return eq_softmax(isa, x.data(), x.shape(0), (int)x.shape(1), out.data()); });
      })
      .def("layer_norm", [](Program& p, int isa, Dense<const float, 2> x, Flat<const float> weight,
                            Flat<const float> bias, float epsilon, Dense<float, 2> out) {
        require_same(x, out);
        require(weight.size() == x.shape(1) && bias.size() == x.shape(1), "weight and bias must have one value per column");
        p.steps.push_back([=] {
          return eq_layer_norm(isa, x.data(), x.shape(0), (int)x.shape(1), weight.data(), bias.data(), epsilon, out.data());
        });
      })
      .def("group_norm", [](Program& p, int isa, Dense<const float, 2> x, int groups, Flat<const float> weight,
                            Flat<const float> bias, float epsilon, Dense<float, 2> out) {
        require_same(x, out);
        require(weight.size() == x.shape(1) && bias.size() == x.shape(1), "weight and bias must have one value per column");
        p.steps.push_back([=] {
          return eq_group_norm(isa, x.data(), x.shape(0), (int)x.shape(1), groups, weight.data(), bias.data(), epsilon,
                               out.data());
        });
      })
      .def("mean_rows", [](Program& p, int isa, Dense<const float, 2> x, Flat<float> out) {
        require(out.size() == x.shape(1) && x.shape(0) > 0, "out must have one value per column");
        p.steps.push_back([=] { return eq_mean_rows(isa, x.data(), (int)x.shape(0), (int)x.shape(1), out.data()); });
      })
      .def("max_pool", [](Program& p, int isa, Dense<const float, 3> x, int kernel, int stride, int pad, Dense<float, 3> out) {
        require(kernel > 0 && stride > 0 && out.shape(2) == x.shape(2) &&
                    (int)out.shape(0) == out_size((int)x.shape(0), pad, 1, kernel, stride) &&
                    (int)out.shape(1) == out_size((int)x.shape(1), pad, 1, kernel, stride),
                "out must be (out_h, out_w, channels)");
        p.steps.push_back([=] {
          return eq_max_pool(isa, x.data(), (int)x.shape(0), (int)x.shape(1), (int)x.shape(2), kernel, stride, pad, out.data());
        });
      })
      .def("copy", [](Program& p, AnyStrided<const float> x, AnyStrided<float> out, float factor) {
        const eq::StridedCopy copy = strided_copy(x, out, factor);
        p.steps.push_back([=] {
          copy.run(x.data(), out.data());
          return 0;
        });
      });
}

void bind_program(nb::module_& m) {
  nb::class_<Program> program(m, "Program");
  program.def(nb::init<>())
      .def("__len__", [](const Program& p) { return p.steps.size(); })
      .def("run", &Program::run, nb::arg("repeats") = 1)
      .def("step_seconds", &Program::step_seconds, nb::arg("repeats"));
  bind_program_products(program);
  bind_program_tensors(program);
  m.def("copy", [](AnyStrided<const float> x, AnyStrided<float> out, float factor) {
    strided_copy(x, out, factor).run(x.data(), out.data());
  });
}
