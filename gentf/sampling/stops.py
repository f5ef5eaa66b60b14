"""Stop strings: a table that follows, token by token, whether one of them was written."""

from collections.abc import Sequence

import numpy as np

from gentf.errors import UserError

MAX_BYTES = 1000


def stop_table(strings: Sequence[str], pieces: Sequence[bytes]) -> np.ndarray:
    """The automaton that finds any of `strings` in what tokens write.

    Args:
        strings: non-empty, 1000 bytes together at most.
        pieces: the bytes that each token writes.
    Returns:
        (S, V) int32, the state after each token: 0 is the start, S - 1 "found", which is never left.
    Raises:
        UserError: no string, an empty one, or too many bytes.
    Reference: Aho & Corasick (1975), algorithms 2 to 4, with the failures worked into the table.
    """
    words = [string.encode() for string in strings]
    if not words or not all(words) or sum(map(len, words)) > MAX_BYTES:
        raise UserError(
            f"`stop` must be strings of {MAX_BYTES} bytes together at most, none empty. Received: {list(strings)!r:.80}"
        )
    nodes: list[dict[int, int]] = [{}]
    found = set()
    for word in words:
        node = 0
        for byte in word:
            if byte not in nodes[node]:
                nodes.append({})
                nodes[node][byte] = len(nodes) - 1
            node = nodes[node][byte]
        found.add(node)
    states = len(nodes)
    table = np.zeros((states + 1, 256), np.int32)
    failure = [0] * states
    queue = [0]
    for node in queue:  # grows while it is gone through: breadth first, so that failures are known
        if node and failure[node] in found:
            found.add(node)
        if node:
            table[node] = table[failure[node]]
        for byte, child in nodes[node].items():
            failure[child] = table[node, byte] if node else 0
            table[node, byte] = child
            queue.append(child)
    table[np.isin(table, sorted(found))] = states
    table[states] = states
    moved = np.empty((states + 1, len(pieces)), np.int32)
    for token, piece in enumerate(pieces):
        state = np.arange(states + 1)
        for byte in piece:
            state = table[state, byte]
        moved[:, token] = state
    used = [state for state in range(states + 1) if state not in found]
    place = np.full(states + 1, -1, np.int32)
    place[used] = np.arange(len(used))
    return place[moved[used]]
