"""The paper's vision networks: counts against the published ones, exits and heads where they belong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from networks_counts import counts_per_exit, image, macs, on_meta, params
from optional import import_or_skip
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import eenet
from eenet.errors import FileFormatError, InvalidInputError
from eenet.models import StackedConvHead, make_heads
from eenet.networks import CifarResNet, DenseNet, MSDNet, hrnet, load_published, resnet20, resnet56


class TestResNet56:
    def test_basic_blocks_have_the_published_size(self) -> None:
        net = on_meta(resnet56)
        # He et al., CVPR 2016, table 6: 0.85 M parameters; 125.5 M multiply-adds is what pruning papers start from,
        # such as Li et al., ICLR 2017, table 1 (1.25e8).
        assert params(net) == 853_018
        assert macs(net, image(32, 32)) == pytest.approx(125.5e6, rel=1e-3)

    @pytest.mark.parametrize(
        ("blocks", "millions"), [((3,) * 3, 0.27), ((5,) * 3, 0.46), ((7,) * 3, 0.66), ((18,) * 3, 1.7)]
    )
    def test_other_depths_have_the_published_size(self, blocks: tuple[int, ...], millions: float) -> None:
        # He et al., CVPR 2016, table 6: ResNet-20, 32, 44 and 110.
        assert params(on_meta(CifarResNet, blocks)) / 1e6 == pytest.approx(millions, abs=0.03)

    def test_twenty_layers_have_the_published_cost(self) -> None:
        net = on_meta(resnet20)
        # Idelbayev's list of CIFAR ResNets: 0.27 M parameters; 40.6 M multiply-adds, as pruning papers count them
        # (He et al., "Soft filter pruning", IJCAI 2018, table 1: 4.06e7).
        assert params(net) / 1e6 == pytest.approx(0.27, abs=0.005)
        assert macs(net, image(32, 32)) == pytest.approx(40.6e6, rel=2e-2)
        assert net.exit_names == ("layers.0", "layers.1")

    def test_bottlenecks_with_heads_have_the_size_that_the_paper_gives(self) -> None:
        net = on_meta(resnet56, bottleneck=True)
        with torch.device("meta"):
            heads = make_heads(net)
        # Ilhan et al., WACV 2024: 0.94 M parameters with three exits; heads as in the code of that paper.
        assert params(net, *heads) == 939_438
        assert net.exit_names == ("layers.0", "layers.1")
        assert macs(net, image(32, 32)) == pytest.approx(127.3e6, rel=1e-3)

    def test_exits_stand_after_blocks_9_and_18(self) -> None:
        net = resnet56()
        assert net.exit_names == ("layers.0", "layers.1")
        seen: list[str] = []
        blocks = [(name, module) for name, module in net.named_modules() if re.fullmatch(r"layers\.\d\.\d", name)]
        places = [(name, net.get_submodule(name)) for name in net.exit_names]
        for name, module in (*blocks, *places):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
        net.eval()(torch.zeros(1, 3, 32, 32))
        assert [seen.index(name) for name in net.exit_names] == [9, 19]
        assert len(blocks) == 27

    def test_small_networks_of_other_users_keep_working(self) -> None:
        net = CifarResNet((1, 1), widths=(4, 8), num_classes=5, channels=1).eval()
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
        assert [head(torch.zeros(2, 4, 8, 8)).shape for head in make_heads(net)] == [(2, 5)]


class TestPublishedWeights:
    @pytest.fixture
    def published(self, shared: Path) -> Path:
        path = shared / "weights" / "cifar10_resnet20.safetensors"
        if not path.is_file():
            pytest.skip(f"needs {path}, which is not there")
        return path

    @staticmethod
    def resnet20_file(folder: Path) -> Path:
        """A file with the published names, without the counters of batches, and random weights."""
        tensors = {
            re.sub(r"^layers\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name): tensor
            for name, tensor in CifarResNet((3, 3, 3)).state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_file(tensors, folder / "resnet20.safetensors")
        return folder / "resnet20.safetensors"

    def test_published_names_are_mapped(self, tmp_path: Path) -> None:
        path = self.resnet20_file(tmp_path)
        net = load_published(CifarResNet((3, 3, 3)), path)
        weights = load_file(path)
        torch.testing.assert_close(net.get_parameter("layers.2.1.conv2.weight"), weights["layer3.1.conv2.weight"])
        torch.testing.assert_close(net.get_buffer("layers.0.0.bn1.running_var"), weights["layer1.0.bn1.running_var"])
        torch.testing.assert_close(net.linear.bias, weights["linear.bias"])

    def test_another_depth_is_refused_with_the_names(self, tmp_path: Path) -> None:
        net = resnet56()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(FileFormatError, match=r"'layers\.0\.3\.conv1\.weight' is missing.*and \d+ more"):
            load_published(net, self.resnet20_file(tmp_path))
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(tensor, before[name])

    def test_too_deep_a_file_and_other_classes_are_refused(self, tmp_path: Path) -> None:
        path = self.resnet20_file(tmp_path)
        with pytest.raises(FileFormatError, match=r"'layers\.0\.1\.bn1\.bias' is not expected"):
            load_published(CifarResNet((1, 1, 1)), path)
        with pytest.raises(FileFormatError, match=r"'linear\.weight' has shape \(10, 64\), expected \(100, 64\)"):
            load_published(CifarResNet((3, 3, 3), num_classes=100), path)

    def test_what_is_not_safetensors_is_refused(self, tmp_path: Path) -> None:
        pickled, torn = tmp_path / "net.pth", tmp_path / "torn.safetensors"
        torch.save(CifarResNet((1, 1, 1)).state_dict(), pickled)
        torn.write_bytes(self.resnet20_file(tmp_path).read_bytes()[:5000])
        with pytest.raises(FileFormatError, match="pickle"):
            resnet56(weights=pickled)
        with pytest.raises(FileFormatError, match="truncated"):
            resnet56(weights=torn)
        with pytest.raises(InvalidInputError, match="not there"):
            resnet56(weights=tmp_path / "nothing.safetensors")

    @pytest.mark.parametrize("depth", [20, 56])
    def test_the_shared_weights_classify_the_shared_images(self, published: Path, shared: Path, depth: int) -> None:
        net = load_published(
            CifarResNet(((depth - 2) // 6,) * 3), published.with_name(f"cifar10_resnet{depth}.safetensors")
        ).eval()
        images, labels = shared_images(shared, 200)
        with torch.inference_mode():
            accuracy = (net(images).argmax(1) == labels).float().mean().item()
        # 91.7 and 93.4 % on the original images; JPEG copies cost about ten points.
        assert accuracy > 0.75


def shared_images(shared: Path, count: int) -> tuple[Tensor, Tensor]:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow to read the shared images")
    pil = pytest.importorskip("PIL.Image", reason="needs Pillow to decode the shared images")
    np = pytest.importorskip("numpy")
    io = pytest.importorskip("io")
    files = sorted((shared / "datasets" / "cifar10").glob("test*.parquet"))
    if not files:
        pytest.skip(f"no test images in {shared / 'datasets' / 'cifar10'}")
    rows = parquet.ParquetFile(files[0]).iter_batches(batch_size=count).__next__().to_pylist()
    pixels = np.stack([np.asarray(pil.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1), torch.tensor([row["label"] for row in rows])


class TestDenseNet:
    def test_for_cifar_has_the_known_size(self) -> None:
        # kuangliu/pytorch-cifar, densenet_cifar: 1,000,618 parameters for ten classes.
        assert params(on_meta(eenet.networks.densenet121, 10)) == 1_000_618
        assert params(on_meta(eenet.networks.densenet121, 100)) == 1_000_618 + 90 * 385
        assert macs(on_meta(eenet.networks.densenet121, 10), image(32, 32)) == pytest.approx(0.125e9, rel=0.01)

    def test_for_imagenet_has_the_published_size(self) -> None:
        net = on_meta(DenseNet, growth=32, num_classes=1000, large_images=True)
        # Huang et al., CVPR 2017; the numbers are those of torchvision's table: 7,978,856 parameters, 2.83 GFLOPS.
        assert params(net) == 7_978_856
        assert macs(net, image(224, 224)) == pytest.approx(2.83e9, rel=0.005)

    def test_gives_what_torchvisions_gives_with_its_weights(self) -> None:
        models = import_or_skip("torchvision.models")
        theirs = models.DenseNet(8, (2, 3, 2), 16, num_classes=7).eval()
        ours = DenseNet((2, 3, 2), growth=8, num_classes=7, large_images=True).eval()
        for one, other in zip(ours.state_dict().values(), in_our_order(theirs), strict=True):
            assert one.shape == other.shape
            one.copy_(torch.rand_like(one) if one.is_floating_point() else other)
            other.copy_(one)
        x = torch.rand(2, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x))

    def test_exits_are_the_three_transitions_with_the_papers_heads(self) -> None:
        net = on_meta(eenet.networks.densenet121)
        assert net.exit_names == ("transitions.0", "transitions.1", "transitions.2")
        assert net.exit_widths == [48, 96, 192]
        heads = make_heads(net)
        assert all(isinstance(head, StackedConvHead) for head in heads)
        assert [params(head) for head in heads] == [
            9 * (width * width // 4 + 2 * (width // 4) ** 2) + 6 * width // 4 + (width // 4 + 1) * 100
            for width in (48, 96, 192)
        ]


def in_our_order(theirs: nn.Module) -> list[Tensor]:
    """torchvision's tensors: stem, all blocks, all transitions, the end."""
    state = theirs.state_dict()

    def rank(name: str) -> int:
        return 1 if "denseblock" in name else 2 if "transition" in name else 3 if re.search("norm5|class", name) else 0

    return [state[name] for name in sorted(state, key=rank)]


class TestMSDNet:
    def test_imagenet_counts_at_every_exit_are_the_published_ones(self) -> None:
        net = on_meta(eenet.networks.msdnet35)
        with torch.device("meta"):
            classifiers = [*make_heads(net), net.head]
        # github.com/kalviny/MSDNet-PyTorch/issues/10, the released model of step 7: (M parameters, M FLOPs), where
        # FLOPs are multiply-adds and those of pooling and ReLU, which are not counted here.
        published = [(8.76, 615.69), (20.15, 1436.39), (31.73, 2283.21), (41.86, 2967.42), (62.31, 3253.79)]
        counted = list(counts_per_exit(net.blocks, classifiers, image(224, 224)))
        for (millions, flops), (total, operations) in zip(published, counted, strict=True):
            assert total / 1e6 == pytest.approx(millions, abs=0.005)
            assert operations / 1e6 == pytest.approx(flops, rel=0.01)

    def test_scales_are_dropped_along_the_depth(self) -> None:
        net = on_meta(eenet.networks.msdnet35)
        maps = image(224, 224)
        shapes = []
        for block in net.blocks:
            maps = block(maps)
            shapes.append([(x.shape[1], x.shape[2]) for x in maps])
        assert [len(shape) for shape in shapes] == [4, 3, 2, 1, 1]
        # The coarsest scale is first, and is the one that the classifiers look at.
        assert all(shape[0][1] == 7 for shape in shapes)
        assert net.exit_widths == [shape[0][0] for shape in shapes[:-1]]
        assert shapes[0] == [(576, 7), (576, 14), (288, 28), (144, 56)]

    def test_cifar_form(self) -> None:
        net = on_meta(eenet.networks.msdnet_cifar)
        assert net.exit_names == tuple(f"blocks.{k}" for k in range(6))
        maps = net.blocks[0](image(32, 32))
        # The README of kalviny/MSDNet-PyTorch for anytime prediction: seven exits, base 4, step 2, 16 channels at
        # first; its defaults are three scales and growth 6 x (1, 2, 4).
        assert [tuple(x.shape[1:]) for x in maps] == [(160, 8, 8), (80, 16, 16), (40, 32, 32)]
        with torch.device("meta"):
            heads = make_heads(net)
        assert [head.get_parameter("fc.weight").shape[1] for head in heads] == [128] * 6
        # No counts are published for it; these are ours.
        counted = [operations / 1e6 for _, operations in counts_per_exit(net.blocks, [*heads, net.head], image(32, 32))]
        assert counted[0] == pytest.approx(15, abs=0.1)
        assert counted[-1] == pytest.approx(75.5, abs=0.1)

    def test_staged_is_whole_when_remaining_samples_carry_all_scales(self) -> None:
        net = MSDNet((2, 2, 2), width=4, growth=4, factors=(1, 2), num_classes=5, hidden=8, large_images=False).eval()
        model = eenet.attach(net, net.exit_names, 5, torch.randn(2, 3, 16, 16), heads=make_heads(net)).eval()
        x = torch.randn(4, 3, 16, 16)
        with torch.inference_mode():
            torch.testing.assert_close(model(x)[-1], net(x))
            torch.testing.assert_close(model(x)[0], model.heads[0](net.blocks[0](x)[0]))
        assert len(model.staged.stages[1].inputs) == 2  # both scales


def test_heads_are_made_for_the_exits_asked_for_and_the_networks_known() -> None:
    net = CifarResNet((1, 1, 1), widths=(4, 8, 16), num_classes=5)
    (head,) = make_heads(net, ["layers.1"])
    assert head(torch.zeros(2, 8, 4, 4)).shape == (2, 5)
    with pytest.raises(InvalidInputError, match=r"'linear' is no exit.*layers\.0"):
        make_heads(net, ["linear"])
    with pytest.raises(InvalidInputError, match="Linear; leave heads out"):
        make_heads(nn.Linear(2, 2))


class TestHRNet:
    @pytest.mark.parametrize(
        ("variant", "millions", "giga"),
        # README of HRNet/HRNet-Semantic-Segmentation, Cityscapes at 1024 x 2048; its giga is 1024 ** 3.
        [("w18-small-v1", 1.5, 31.1), ("w18-small-v2", 3.9, 71.6), ("w48", 65.8, 696.2)],
    )
    def test_published_counts(self, variant: str, millions: float, giga: float) -> None:
        net = on_meta(hrnet, variant)
        assert params(net) / 1e6 == pytest.approx(millions, abs=0.07)
        assert macs(net, image(1024, 2048)) / 1024**3 == pytest.approx(giga, rel=2e-3)

    def test_w18_and_w32_have_the_backbones_of_the_classification_models(self) -> None:
        # Wang et al., TPAMI 2020, keep the same four stages for all tasks; timm has them for classification.
        timm = import_or_skip("timm")
        for variant in ("w18", "w32", "w48", "w18-small-v2"):
            net = on_meta(hrnet, variant)
            name = {"w18-small-v2": "hrnet_w18_small_v2"}.get(variant, f"hrnet_{variant}")
            theirs = on_meta(timm.create_model, name)
            parts = ("conv1", "bn1", "conv2", "bn2", "layer1", "stage2", "stage3", "stage4")
            entries = ("transition1", "transition2", "transition3")
            assert params(net) - params(net.head) == params(*(getattr(theirs, part) for part in (*parts, *entries)))

    def test_logits_have_the_size_of_the_image(self) -> None:
        net = hrnet("w18-small-v1", 11).eval()
        x = torch.randn(1, 3, 60, 92)
        with torch.inference_mode():
            assert net(x).shape == (1, 11, 60, 92)
            feature: tuple[Tensor, ...] | Tensor = net.stage1(net.stem(x))
            for name, head in zip(net.exit_names, make_heads(net), strict=True):
                if name != "stage1":
                    feature = getattr(net, name)((feature,) if isinstance(feature, Tensor) else feature)
                seen = feature if isinstance(feature, Tensor) else getattr(net, name).exit_feature(feature)
                assert seen.shape[-2:] == (15, 23)
                assert head.eval()(seen).shape == (1, 11, 60, 92)

    def test_sizes_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"181 x 240.*184 x 240"):
            hrnet("w18-small-v1").eval()(torch.zeros(1, 3, 181, 240))
        with pytest.raises(InvalidInputError, match="w18-small-v2"):
            hrnet("w17")

    def test_cut_after_the_first_three_stages(self) -> None:
        net = hrnet("w18-small-v1", 5).eval()
        x = torch.randn(2, 3, 32, 64)
        staged = eenet.cut(net, at=list(net.exit_names), example=(x,))
        with torch.inference_mode():
            torch.testing.assert_close(staged(x), net(x), rtol=1e-4, atol=1e-5)
        widths = [stage.outputs[stage.feature_index or 0].shape[1] for stage in staged.stages[:-1]]
        assert widths == list(net.exit_widths)
        assert [len(stage.inputs) for stage in staged.stages] == [1, 1, 2, 3]
