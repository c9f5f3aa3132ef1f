import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoquant.errors import PrecisionError
from evoquant.quant import PACKED_BITS, pack, packed_bytes, quantize, unpack, weight_bytes, weight_params
from evoquant.types import ConvGeometry, LayerQuantConfig, Op, OpKind, Role


@given(
    bits=st.sampled_from(PACKED_BITS),
    rows=st.integers(1, 4),
    columns=st.integers(1, 40),
    is_signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_unpack_is_the_inverse_of_pack(bits, rows, columns, is_signed, seed):
    lower = -(2 ** (bits - 1)) if is_signed else 0
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(lower, lower + 2**bits, (rows, columns), generator=generator, dtype=torch.int32)
    packed = pack(codes, bits=bits)
    assert packed.dtype is torch.uint8
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack(packed, bits=bits, columns=columns, is_signed=is_signed), codes)


def test_first_value_is_in_the_lowest_bits():
    assert pack(torch.tensor([[0, 1, 2, 3]]), bits=2).tolist() == [[0b11_10_01_00]]
    assert pack(torch.tensor([[0, 1, -2, -1]]), bits=2).tolist() == [[0b11_10_01_00]]
    assert pack(torch.tensor([[1, 2, 3]]), bits=4).tolist() == [[0x21, 0x03]]
    assert pack(torch.tensor([[0x1234]]), bits=16).tolist() == [[0x34, 0x12]]


def test_rows_do_not_share_bytes():
    packed = pack(torch.tensor([[1, 1, 1], [0, 0, 0]]), bits=3)
    assert packed.tolist() == [[0b01001001, 0], [0, 0]]


def test_problems_are_named():
    with pytest.raises(PrecisionError, match=r"\[0, 15\], but got 16 at row 1, column 0"):
        pack(torch.tensor([[1, 2], [16, 99]]), bits=4)
    with pytest.raises(PrecisionError, match=r"\[-8, 7\], but got 8 at row 0, column 1"):
        pack(torch.tensor([[-1, 8]]), bits=4)
    with pytest.raises(PrecisionError, match="bits must be one of 1, 2, 3"):
        pack(torch.tensor([[1]]), bits=9)
    with pytest.raises(PrecisionError, match=r"shape \(rows, columns\), but got \(2,\)"):
        pack(torch.tensor([1, 2]), bits=4)
    with pytest.raises(PrecisionError, match="rows of 2 bytes for 3 values of 4 bits"):
        unpack(torch.zeros(1, 3, dtype=torch.uint8), bits=4, columns=3, is_signed=False)


CONFIGS = [
    LayerQuantConfig(weight_bits=5),
    LayerQuantConfig(weight_bits=4, granularity="per_tensor"),
    LayerQuantConfig(weight_bits=3, granularity="per_group", group_size=9),
    LayerQuantConfig(weight_bits=8, weight_symmetric=False),
    LayerQuantConfig(weight_bits=16, weight_symmetric=False),
    LayerQuantConfig(weight_bits=4, weight_scheme="power_of_two"),
    LayerQuantConfig(weight_bits=4, weight_scheme="log2"),
    LayerQuantConfig(weight_bits=2, weight_scheme="ternary"),
    LayerQuantConfig(weight_bits=1, weight_scheme="binary"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.label}-{config.granularity.value}")
def test_counted_bytes_are_the_bytes_of_the_packed_weight(config):
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    params = weight_params(weight, config)
    codes = quantize(weight, params).reshape(6, -1)
    if config.weight_scheme.value == "power_of_two":
        scales = params.scale.log2().to(torch.int8)
        assert torch.equal(torch.exp2(scales.float()), params.scale)
    else:
        scales = params.scale
    expected = pack(codes, bits=config.weight_bits).nbytes + scales.nbytes
    if not config.weight_symmetric:
        expected += params.zero_point.to(torch.int8 if config.weight_bits <= 8 else torch.int16).nbytes
    assert packed_bytes(tuple(weight.shape), config) == expected


def test_bytes_by_hand():
    shape = (10, 30)
    assert packed_bytes(shape, LayerQuantConfig(weight_bits=32)) == 10 * 30 * 4
    assert packed_bytes(shape, LayerQuantConfig(weight_bits=3)) == 10 * 12 + 10 * 4
    assert packed_bytes(shape, LayerQuantConfig(weight_bits=4, granularity="per_group", group_size=10)) == 150 + 30 * 4
    with pytest.raises(PrecisionError, match=r"20 does not divide 30. Use 10 or 15"):
        packed_bytes(shape, LayerQuantConfig(granularity="per_group", group_size=20))


def test_matmul_stores_nothing():
    def op(kind, shape):
        geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
        return Op(
            "x", kind, Role.CONV, "", "", "g", "n", ("i",), (), shape, (), geometry, (1, 1, 1, 1), 1, 0, False, (), ()
        )

    assert weight_bytes(op(OpKind.MATMUL, (4, 8)), LayerQuantConfig()) == 0
    assert weight_bytes(op(OpKind.CONV, (4, 8, 3, 3)), LayerQuantConfig()) == 4 * 72 + 4 * 4
