"""The four errors of mcpl, named by who must act. Anything else propagates."""


class MCPLError(Exception):
    """Base of the four; its message says what was wrong, where, and what to do, in one line."""


class ConfigError(MCPLError):
    """A setting is wrong. Raised before any accelerator is used; the person who wrote the command acts."""


class ExampleError(MCPLError):
    """One picture or sentence is unusable. Recorded with its reason and skipped; the data's owner acts."""


class NothingToLearn(ExampleError):
    """The sentence holds none of the words that were asked for: nobody's mistake, recorded as skipped."""


class PackTooLarge(MCPLError):
    """The device ran out of memory. The scheduler halves the pack and tries again."""


class BankMismatch(MCPLError):
    """The output holds another recipe's or another base's work. Nothing is touched; the operator acts."""
