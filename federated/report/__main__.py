"""`python -m federated.report`."""

from federated.report import main

if __name__ == "__main__":
    main()
