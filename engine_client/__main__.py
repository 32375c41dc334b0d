"""`python -m engine_client` is the command `engine`."""

from engine_client.cli import engine

if __name__ == "__main__":
    engine(prog_name="engine")
