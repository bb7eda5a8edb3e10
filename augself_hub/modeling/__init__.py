"""The part of augself_hub that needs torch. The public names come from `augself_hub` itself."""
