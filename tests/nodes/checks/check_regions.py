"""FaceRegions: every layout as masks of ComfyUI's, and what is no layout."""

import torch
from check_photos import module, refused


def run(pack, layout, guide=None, **changes):
    """Its outputs: five regions, all, preview."""
    widgets = {"columns": 2, "rows": 2, "boxes": "0, 0, 0.5, 1", "width": 96, "height": 64, "margin": 0.0, "feather": 0}
    regions = module(pack, "nodes.regions").FaceRegions
    *each, all_of_them, preview = regions.execute(layout, guide=guide, **widgets | changes).args
    assert len(each) == 5
    assert all(mask.shape == (1, *all_of_them.shape[1:]) for mask in each)
    for number, mask in enumerate(each):
        assert torch.equal(mask[0], all_of_them[number] if number < len(all_of_them) else torch.zeros_like(mask[0]))
    return all_of_them, preview


def check_columns_grids_and_boxes(pack):
    masks, preview = run(pack, "columns")
    assert masks.shape == (2, 64, 96)
    assert masks[0, :, :48].all()
    assert not masks[0, :, 48:].any()
    assert torch.equal(masks.sum(0), torch.ones(64, 96))
    assert preview.shape == (1, 64, 96, 3)
    masks, _ = run(pack, "grid", columns=3, margin=0.1)
    assert len(masks) == 6
    assert not masks[:, 31:33].any()
    masks, _ = run(pack, "boxes", boxes="0.5, 0.5, 1, 1")
    assert masks.shape == (1, 64, 96)
    assert masks.nonzero().min(0).values.tolist() == [0, 32, 48]


def check_edges_grow_soft(pack):
    hard, _ = run(pack, "columns")
    soft, _ = run(pack, "columns", feather=12)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    row = soft[0, 32]
    assert (row.diff() <= 0).all()
    assert ((row > 0.01) & (row < 0.99)).sum() in range(6, 25)
    torch.testing.assert_close(soft.sum(0), torch.ones(64, 96))


def check_faces_of_a_guide(pack):
    """Two copies of a sample beside one another: a region around each, over the picture in the preview."""
    (first, *_), *_ = module(pack, "nodes.photos").LoadPhotos.execute("sample: person").args
    guide = torch.cat([first, first], 2)
    masks, preview = run(pack, "faces", guide=guide, width=256, height=128)
    assert masks.shape == (2, 128, 256)
    assert masks[0].nonzero()[:, 1].float().mean() < 128 < masks[1].nonzero()[:, 1].float().mean()
    assert not (masks[0] * masks[1]).any()
    grey, _ = run(pack, "columns", width=256, height=128)
    assert preview.shape == (1, 128, 256, 3)
    assert preview.std() > 0.05
    shown = run(pack, "columns", guide=guide, width=256, height=128)
    assert torch.equal(shown[0], grey)


def check_what_is_no_layout(pack):
    with refused("guide: layout faces looks for them in a picture"):
        run(pack, "faces")
    with refused("guide: no face is found"):
        run(pack, "faces", guide=torch.zeros(1, 64, 64, 3))
    with refused("boxes: box 1 is 0.5, 0, 0.5, 1"):
        run(pack, "boxes", boxes="0.5 0 0.5 1")
    with refused("boxes: there is none"):
        run(pack, "boxes", boxes=" ")
