"""The errors that end a module with one clear line, and how a module is run."""

from __future__ import annotations

import re

MESSAGE_LIMIT = 800


class Error(Exception):
    """Something that the operator can act on.

    :param message: one or more sentences for the operator; line breaks are folded.
    :param details: further return values of the failed module, such as ``log``.
    """

    def __init__(self, message: str, **details):
        super().__init__(one_line(message))
        self.details = details


class MissingLibraryError(Error):
    """A Python library is not installed for the Python that runs the module."""

    def __init__(self, library: str, cause: str):
        super().__init__(f"the Python library {library} is missing ({cause})")
        self.library = library


def one_line(text, limit: int = MESSAGE_LIMIT) -> str:
    """Fold any text into one line of at most ``limit`` characters; the end is kept, for there the cause is told."""
    folded = re.sub(r"\s+", " ", str(text)).strip()
    if len(folded) <= limit:
        return folded
    return "... " + folded[-(limit - 4) :].lstrip()


def run(module, function) -> None:
    """Run ``function(module)`` and leave the module with its result or with the error's one line.

    :param module: the AnsibleModule.
    :param function: takes the module, returns the dict of return values, raises :class:`Error`. Where these have
        ``changes``, the module has changed something if there are any; ``diff`` is shown to who has asked for it.
    """
    try:
        result = function(module)
    except MissingLibraryError as error:
        from ansible.module_utils.basic import missing_required_lib

        module.fail_json(msg=missing_required_lib(error.library))
    except Error as error:
        module.fail_json(msg=str(error), **error.details)
    else:
        if "changes" in result:
            result["changed"] = bool(result["changes"])
        if not module._diff:
            result.pop("diff", None)
        module.exit_json(**result)
