"""Methods whose steps are not all alike count them."""

from ..half_steps import HalfSteps


class Counting(HalfSteps):
    """Half-steps that count in ``steps_begun``, an option of the groups, so that a state has it.

    A step that is skipped for a gradient that is not finite counts too: only the device knows.
    """

    @property
    def steps_begun(self) -> int:
        """How many steps have been taken, those skipped included."""
        return int(self.param_groups[0]["steps_begun"])

    def _count(self) -> None:
        for group in self.param_groups:
            group["steps_begun"] = self.param_groups[0]["steps_begun"] + 1

    def _descend(self) -> None:
        super()._descend()
        self._count()

    def _single_step(self) -> None:
        super()._single_step()
        self._count()
