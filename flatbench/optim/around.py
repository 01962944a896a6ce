"""An optimizer around another one: they share groups and state."""

from abc import abstractmethod
from typing import Any

from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import own_state
from .base import after_loading, check_base, prefer_fused
from .groups import Group, check_base_options, check_parameters
from .layout import lay_out_state


class AroundBase(Optimizer):
    """An optimizer whose ``param_groups`` and ``state`` are those of a base, whatever is loaded.

    Attributes:
        base_optimizer: the base.
        own_state: parameter -> name -> tensor, what is kept beside the base's state; ``state_dict``
            holds it, too.
    """

    base_optimizer: Optimizer
    own_state: own_state.OwnState

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        options: dict[str, Any],
        base_kwargs: dict[str, Any],
    ) -> None:
        """Make the base on the same groups; they have ``options`` beside the base's own."""
        check_base(base_optimizer)
        self._options = dict(options)
        self.own_state = {}
        super().__init__(params, options)
        base_kwargs = prefer_fused(base_optimizer, self.param_groups, base_kwargs)
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.defaults.update(self.base_optimizer.defaults)

    @abstractmethod
    def _check_group(self, group: Group) -> None:
        """Raise ValueError for an invalid option."""

    @abstractmethod
    def _refuse_while_perturbed(self, what: str) -> None:
        """Raise RuntimeError if the weights are not where the base has them."""

    @abstractmethod
    def _forget_fused_step(self) -> None:
        """Drop what was made for the groups and the state as they were."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch.optim.Optimizer; it may set rho, adaptive and eta."""
        if "base_optimizer" in self.__dict__:
            self._refuse_while_perturbed("add_param_group")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            check_parameters(self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        self._forget_fused_step()

    def state_dict(self) -> StateDict:
        """Return the base's state, the method's own and all groups' options, in torch's format."""
        self._refuse_while_perturbed("state_dict")
        return own_state.added(super().state_dict(), self.own_state, self.param_groups)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a ``state_dict`` of this class or of a plain base optimizer."""
        self._refuse_while_perturbed("load_state_dict")
        base, own = own_state.parted(state_dict)
        super().load_state_dict(base)
        self.own_state = own_state.placed(own, self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "base_optimizer": self.base_optimizer,
            "own_state": self.own_state,
            "_options": self._options,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict with new groups and state, and by pickle with everything.
        super().__setstate__(state)
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        if "_is_attached" in self.__dict__:
            self._follow_base()
        else:
            self._attach()

    def _attach(self) -> None:
        self._is_attached = True
        after_loading(self.base_optimizer, self._follow_base)
        self._follow_base()

    def _follow_base(self) -> None:
        """Share the base's groups and state, which a load replaces."""
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        for group in self.param_groups:
            for option, value in self._options.items():
                group.setdefault(option, value)
            self._check_group(group)
            check_base_options(group)
            for p in group["params"]:
                lay_out_state(p, self.state.get(p, {}))
        self._forget_fused_step()
