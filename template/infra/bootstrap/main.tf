# Makes the bucket that holds the state of an environment, once: `just bootstrap ENVIRONMENT`.

terraform {
  required_version = ">= 1.9, < 2"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7, < 9"
    }
  }

  # On this machine, in ENVIRONMENT.tfstate: before the bucket, there is no other place.
  backend "local" {}
}

variable "project_id" {
  description = "ID of the environment's Google Cloud project."
  type        = string
}

variable "region" {
  description = "Region of the bucket."
  type        = string
}

variable "state_bucket" {
  description = "Name of the bucket, as environments/ENVIRONMENT.gcs.tfbackend has it."
  type        = string
}

provider "google" {
  project = var.project_id
  region  = var.region
}

resource "google_storage_bucket" "state" {
  #checkov:skip=CKV_GCP_62:Who reads the state is in the audit log of Cloud Storage, once that is turned on.
  name                        = var.state_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      num_newer_versions = 20
      with_state         = "ARCHIVED"
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}
