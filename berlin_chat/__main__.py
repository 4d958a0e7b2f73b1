"""``python -m berlin_chat`` is ``berlin-chat``."""

from .cli import main

if __name__ == "__main__":
    main()
