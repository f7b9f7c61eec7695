"""Words that programming tasks have in common, and that tell none of them from another."""

from collections.abc import Sequence

__all__ = ["content_words"]

_COMMON = frozenset(
    "a an the to of in for with and or that which is are be by from on as at it its this these those if then such "
    "use using used uses given give gives write writes create creates implement define make develop generate build "
    "design construct find function functions program programs python code method script task take takes taking "
    "return returns returned returning output outputs input inputs print prints accept accepts should can will you "
    "your please following".split()
)


def content_words(words: Sequence[str]) -> list[str]:
    """Return the words that say what a task is about, of words in lower case.

    Example:

    ```python
    >>> content_words("write a function that takes a string as input and returns its length".split())
    ['string', 'length']

    ```
    """
    return [word for word in words if word not in _COMMON]
