import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.inference.largest import BLOCK, index_of_largest

SIZES = st.sampled_from([1, BLOCK - 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK - 1, 5 * BLOCK + 7])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
RARE = (float("nan"), float("inf"), float("-inf"))


@given(st.integers(0, 2**31), SIZES, DTYPES, st.integers(1, 40), st.lists(st.sampled_from(RARE), max_size=3))
def test_it_is_the_first_of_the_largest_elements(seed, n, dtype, n_values, rare):
    """Few distinct values, so that most rows have the largest one several times."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(-n_values, n_values, (4, n), generator=random).to(dtype)
    for value in rare:
        values[int(torch.randint(4, (), generator=random)), int(torch.randint(n, (), generator=random))] = value
    found = index_of_largest(values)
    for row, index in zip(values.tolist(), found.tolist(), strict=True):
        nan = [i for i, x in enumerate(row) if x != x]
        assert index == (nan[0] if nan else row.index(max(row)))
    assert torch.equal(found, values.argmax(1))


def test_every_place_is_found():
    for n in (2 * BLOCK, 2 * BLOCK + 3):
        assert index_of_largest(torch.eye(n)).tolist() == list(range(n))
