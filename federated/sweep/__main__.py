"""`python -m federated.sweep`."""

from federated.sweep import main

if __name__ == "__main__":
    main()
