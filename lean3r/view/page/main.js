// Begin with what this page was given, or what the program that serves it has.
import { begin } from "./app.js";
import { load } from "./loading.js";

begin(load);
