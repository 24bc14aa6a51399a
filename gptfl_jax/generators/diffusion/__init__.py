"""Networks and solvers of latent diffusion, whatever it makes."""
