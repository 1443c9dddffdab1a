"""Training rates of ResNet-50 on ImageNet that others have published, for machines not at hand.

None of them runs RandAugment, mixup, CutMix, LAMB or an EMA, except the RSB
authors': they are ceilings, not forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cards import matching_names

MODEL = "resnet50"

# Rates fall with the side of the images to a power: 2 if they follow the area, 1.66 between 160 and
# 192 px in FFCV's logs (the same code on 8 A100).
SIZE_EXPONENTS = (1.66, 2.0)


@dataclass(frozen=True)
class PublishedRate:
    """Images/s of one GPU at `size_px`, and where that is written."""

    gpu: str
    img_per_s: float
    size_px: int
    source: str

    def range_at(self, size_px: int) -> tuple[float, float]:
        """The rate at another size, lowest and highest: an estimate unless the sizes agree."""
        rates = [self.img_per_s * (self.size_px / size_px) ** power for power in SIZE_EXPONENTS]
        return min(rates), max(rates)


PUBLISHED_RATES = (
    PublishedRate("V100", 593, 160, "RSB's A3: 100 epochs in 15 h on 4 V100"),
    PublishedRate(
        "V100",
        1200,
        224,
        "NVIDIA DeepLearningExamples, PyTorch ResNet-50 v1.5, 1 V100-16, AMP, channels-last",
    ),
    PublishedRate(
        "V100", 1376, 224, "NVIDIA DeepLearningExamples, MXNet and DALI, 1 V100-16, fp16"
    ),
    PublishedRate("A100", 3518, 160, "ffcv-imagenet's logs, 8 A100, median epoch at 160 px"),
    PublishedRate(
        "A100",
        2470,
        224,
        "NVIDIA DeepLearningExamples, PyTorch ResNet-50 v1.5, 1 A100-80, AMP, channels-last",
    ),
    PublishedRate("A100", 3398, 224, "MLPerf Training v2.0, NVIDIA, 8 A100, MXNet and DALI"),
    PublishedRate(
        "H100", 2791, 224, "lambdal/deeplearning-benchmark, 1 H100 SXM, fp16, synthetic data, NCHW"
    ),
    PublishedRate("H100", 7054, 224, "MLPerf Training v3.1, NVIDIA, 8 H100, MXNet and DALI"),
    PublishedRate("H100", 7449, 224, "MLPerf Training v4.0, Fujitsu, 4 H100, MXNet and DALI"),
    PublishedRate("H100", 7162, 224, "MLPerf Training v4.0, NVIDIA, 8 H100, MXNet and DALI"),
    PublishedRate("H100 PCIe", 4525, 224, "MLPerf Training v4.0, 8 H100 PCIe, MXNet and DALI"),
    PublishedRate("L40S", 1854, 224, "MLPerf Training v4.0, 8 L40S, MXNet and DALI"),
    PublishedRate("H200", 7950, 224, "MLPerf Training v4.0, 8 H200, MXNet and DALI"),
    PublishedRate(
        "H200", 3079, 224, "lambdal/deeplearning-benchmark, 1 H200, fp16, synthetic data, NCHW"
    ),
    PublishedRate(
        "B200", 3076, 224, "lambdal/deeplearning-benchmark, 1 B200, fp16, synthetic data, NCHW"
    ),
    PublishedRate(
        "RTX 3090", 1218, 224, "timm's benchmark csv, AMP, channels-last, synthetic data"
    ),
)


# Images/s that are decoded and no more, by whom and with what.
DECODING_RATES = (
    (21_567, "DALI's continuous integration (pull request 6445, 2026), a GPU with 70 threads"),
    (7_834, "torchvision's fused CUDA decoder, A100, images of 551 x 676"),
    (6_400, "LitData, files as they are from S3, one machine; 3,200 with a transform"),
)


def rates_of(gpu: str) -> list[PublishedRate]:
    """The published rates of a GPU, by its name: "H100", "a100", "NVIDIA H100 PCIe"."""
    found = matching_names(gpu, dict.fromkeys(rate.gpu for rate in PUBLISHED_RATES))
    return [rate for rate in PUBLISHED_RATES if rate.gpu in found]
