"""
Offline text-to-speech for beluga-voice: eSpeak NG, 140 languages and accents, robotic and almost free of cost.

Importing this loads no engine; `synth.speak` does at first use. The engine is GPL-3.0: see the README.
"""

BELUGA_VOICE_API = 1
