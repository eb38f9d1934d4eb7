"""Errors that a person can act on: what happened, where, why, and what to do next."""


class NatflError(Exception):
    """A mistake or refusal that the command line prints as one line, without a traceback.

    `what` is a short statement; `where` names the key, file, site or round; `why` gives the
    reason; `fix` says what to do next.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        text = f"{where}: {what}" if where else what
        text += f" ({why})" if why else ""
        super().__init__(text + (f". Next: {fix}" if fix else ""))


class ConfigError(NatflError):
    """The configuration asks for something unknown or impossible."""


class DataError(NatflError):
    """Images, labels or splits cannot be used as they are."""


class ModelError(NatflError):
    """A network or a weights file cannot be used."""


class PrivacyError(NatflError):
    """A guarantee cannot be given, or a budget does not suffice."""


class LedgerError(PrivacyError):
    """The ledger is damaged, belongs to another site, or refuses to spend."""


class ProtocolError(NatflError):
    """A message or a party breaks the protocol; nothing was released."""


class RunFolderError(NatflError):
    """A run folder cannot be written, or belongs to another configuration."""


class AbsentError(ProtocolError):
    """A party gave no answer: its connection ended, it is silent, or it refused."""
