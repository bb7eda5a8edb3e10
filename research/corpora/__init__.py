"""The image collections of our own results, from the pictures Debian ships.

The packages are unpacked first, without installing them:

    apt-get download lomiri-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 \\
        plasma-workspace-wallpapers gnome-backgrounds mate-backgrounds \\
        tuxpaint-stamps-default openclipart-png
    for f in *.deb; do dpkg -x $f packages; done
    python -m research.corpora packages corpus

writes

    corpus/pretrain/          what is trained on: photo tiles and clip-art
    corpus/held-out/          tiles of photographs that are in no other folder of these
    corpus/development/SET/   labelled sets that choose learning rates: {train,val,test}/CLASS/
    corpus/final/SET/         labelled sets that results are read from, laid out alike
    corpus/manifest.json      the sha256, source and role of every file, and one of them all

What each set holds and why is in research/data.md.
"""
