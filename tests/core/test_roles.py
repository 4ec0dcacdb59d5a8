import pytest

from twinflow.roles import share_out

ROLES = dict(one_step=1, multi_step=1, any_step=1, fake=1)


@pytest.mark.parametrize("rows", range(4, 30))
@pytest.mark.parametrize("weights", [ROLES, dict(one_step=1, any_step=6, fake=2), dict(one_step=0, multi_step=3, fake=1)])
def test_every_role_gets_its_share_of_the_rows(rows, weights):
    roles = share_out(rows, weights)
    sizes = {role: r.stop - r.start for role, r in roles.rows.items()}
    assert list(sizes) == [role for role, w in weights.items() if w] and sum(sizes.values()) == rows
    assert sum(roles.share.values()) == pytest.approx(1) and roles.share == {k: n / rows for k, n in sizes.items()}
    assert min(sizes.values()) >= 1
    for role, size in sizes.items():  # one row is each role's own; the others are within one of their proportion
        assert abs(size - rows * weights[role] / sum(weights.values())) < 2, (role, size)


@pytest.mark.parametrize("batch, parts", [(1, 4), (2, 3), (3, 5), (8, 2)])
def test_the_parts_hold_the_rows_of_the_whole(batch, parts):
    of = lambda roles, first: {first + row: role for role, rows in roles.rows.items() for row in range(rows.start, rows.stop)}
    pieces = [share_out(batch, ROLES, part=part, parts=parts) for part in range(parts)]
    whole = share_out(batch * parts, ROLES)
    assert of(whole, 0) == {row: role for part, piece in enumerate(pieces) for row, role in of(piece, part * batch).items()}
    assert all(piece.share == whole.share for piece in pieces)


def test_a_batch_with_fewer_rows_than_roles_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="batch 1 x accumulation 3 is 3 rows; .* raise the accumulation to 4 or drop roles"):
        share_out(1, ROLES, parts=3)
    assert len(share_out(1, ROLES, part=3, parts=4).rows) == 1
