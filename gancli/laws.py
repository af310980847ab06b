class Law: pass
