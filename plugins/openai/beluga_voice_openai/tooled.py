"""An engine with the option `tools`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beluga_voice.errors import OptionError
from beluga_voice.remote import Remote
from beluga_voice.tools import Toolbox

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Tooled"]


class Tooled(Remote):
    """Holds the tools that its options name in `toolbox`.

    Args:
        options: those of the engine, `tools` among them.

    Raises:
        OptionError: an option does not fit, or `tools` holds what is no tool.
        ConfigError: a tool cannot be imported.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.toolbox = self._make_toolbox()

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options. Raises what the class does."""
        other = super().with_options(**changes)
        if "tools" in changes:
            other.toolbox = other._make_toolbox()
        return other

    def _make_toolbox(self) -> Toolbox:
        try:
            return Toolbox(self.options.tools)
        except (TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(f"{self.kind} {self.name!r}: option 'tools': {error}") from None
