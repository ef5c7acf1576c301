"""The models: the temporal U-Net and the video autoencoder, with the layers they share."""
