"""What the trainer is compared with: the loop of the well-known scripts.

Written for the comparison, after the habits of public code rather than any one file of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.per_tensor import PerTensorSAM
from flatbench.data import DataSet

WORKERS = 2


class _Images(Dataset[tuple[Tensor, int]]):
    """Images through PIL, one at a time, as torchvision's own data sets give them."""

    def __init__(self, dataset: DataSet, augmentation: str) -> None:
        part = dataset.train
        self.images, self.labels = part.images.cpu().numpy(), part.labels.tolist()
        if self.images.shape[3] == 1:  # PIL's grey images have no third axis
            self.images = self.images[..., 0]
        size = part.images.shape[1]
        augment = {
            "none": [],
            "crop": [transforms.RandomCrop(size, padding=4)],
            "crop-flip": [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
            ],
        }[augmentation]
        mean, std = ((x / 255).tolist() for x in (dataset.mean, dataset.std))
        self.transform = transforms.Compose(
            [*augment, transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class PlainLoop:
    """The loop around it: a DataLoader with workers, fp32, and the loss read at every step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: PerTensorSAM,
        dataset: DataSet,
        batch_size: int,
        augmentation: str,
    ) -> None:
        self.model, self.optimizer = model.train(), optimizer
        self.where = next(model.parameters()).device
        self.loader = DataLoader(
            _Images(dataset, augmentation),
            batch_size,
            shuffle=True,
            num_workers=WORKERS,
            drop_last=True,
            pin_memory=self.where.type == "cuda",
            persistent_workers=True,
        )
        self.batches = self._endless()
        self.loss, self.hits = 0.0, 0

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def _set_batchnorm(self, momentum: float) -> None:
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = momentum

    def step(self) -> None:
        """One SAM step on the next batch."""
        images, labels = (x.to(self.where) for x in next(self.batches))
        self._set_batchnorm(0.1)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.first_step()
        self.model.zero_grad()
        self._set_batchnorm(0.0)
        F.cross_entropy(self.model(images), labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.second_step()
        self.model.zero_grad()
        self.loss += loss.item()
        self.hits += int((logits.argmax(1) == labels).sum().item())
