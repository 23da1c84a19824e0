"""Files that hold a JSON object."""

import json
from typing import Any

from cocolm_tf import files
from cocolm_tf.errors import UserError


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: If it is not one.

    Example:
    ```python
    read_json("released/config.json")["hidden_size"]
    ```
    """
    try:
        content = json.loads(files.read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes a JSON object.

    Args:
        path: The file.
        content: What to write.

    Example:
    ```python
    write_json("released/config.json", {"hidden_size": 768})
    ```
    """
    files.write_text(path, json.dumps(content, indent=2) + "\n")
